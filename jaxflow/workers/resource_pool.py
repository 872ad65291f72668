"""A set of devices with a name, before anything runs on it. Knows no transport and does not import Ray."""

from __future__ import annotations

import dataclasses

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
