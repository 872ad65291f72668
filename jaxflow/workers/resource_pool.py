"""A set of devices with a name, before anything runs on it. Knows no transport and does not import Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxflow.engine.mesh import AXES
from jaxflow.placement import MeshSizes
from jaxflow.workers.transfer import Grid


@dataclasses.dataclass(frozen=True)
class ResourcePool:
    """Devices per host × hosts. Roles given the same pool live in the same processes and take turns on it.

    Nothing is claimed until the pool is placed: then each host is one process that owns its devices, and the
    processes together run one program at a time. Different pools share no device and run at the same time.
    """

    name: str
    platform: str  # cpu: simulated devices | gpu
    hosts: int
    devices_per_host: int
    mesh: MeshSizes
    roles: tuple[str, ...]
    compilation_cache: str  # folder of compiled programs; empty: off
    offload: tuple[str, ...] = ()  # roles that wait in host memory between their uses
    generation_scoring: tuple[str, ...] = ()  # roles that score in the generation layout
    accelerator: str = ""  # what Ray calls the devices that its hosts must have; empty: any will do

    @property
    def claim(self) -> dict[str, float]:
        """Return the resources of each host, by Ray's names."""
        claimed = {"CPU": 1.0}
        if self.platform == "gpu":
            claimed["GPU"] = float(self.devices_per_host)
        if self.accelerator:
            # A host that has the kind has one of this; no pool is to use it up.
            claimed[f"accelerator_type:{self.accelerator}"] = 0.001
        return claimed

    @property
    def devices(self) -> int:
        """Count the devices of all hosts."""
        return self.hosts * self.devices_per_host

    @property
    def grid(self) -> Grid:
        """Return the mesh as the transfer protocols see it."""
        sizes = vars(self.mesh)
        return Grid({axis: sizes[axis] for axis in AXES if axis in sizes}, self.devices_per_host)

    def in_one_process(self) -> ResourcePool:
        """Return the same devices and mesh with all of them on one host."""
        return dataclasses.replace(self, hosts=1, devices_per_host=self.devices)


def cores_of(pools: Sequence[ResourcePool], available: Sequence[int]) -> dict[str, list[tuple[int, ...]]]:
    """Deal CPU cores to the processes of the pools, as even as it goes: pool name -> cores of each process.

    Simulated devices of different pools then run at the same time without taking each other's cores, as real
    ones do. With more processes than cores they share. No cores, no choice: where none are available, and for a
    single process, which may use all.
    """
    names = [pool.name for pool in pools for _ in range(pool.hosts)]
    count = len(names)
    dealt: dict[str, list[tuple[int, ...]]] = {pool.name: [] for pool in pools}
    for index, name in enumerate(names):
        if count == 1 or not available:
            cores: tuple[int, ...] = ()
        elif count <= len(available):
            cores = tuple(available[index * len(available) // count : (index + 1) * len(available) // count])
        else:
            cores = (available[index % len(available)],)
        dealt[name].append(cores)
    return dealt
