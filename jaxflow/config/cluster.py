"""Where a run happens: pools of devices, their meshes, how long to wait for workers. Knows no algorithm, no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes of one pool; data × fsdp × expert × pipe × tensor is the number of its devices."""

    data: int = 1  # data-parallel replicas
    fsdp: int = 1  # ways the weights and optimizer are sharded over replicas that see different rows (ZeRO-3)
    tensor: int = 1  # tensor-parallel size in training and scoring, t
    generation_tensor: int = 1  # tensor-parallel size in generation, t_g; divides `tensor`
    pipe: int = 1  # pipeline stages in training and scoring, p
    # Stages in generation, p_g; divides `pipe`; 1: the layers of all stages are gathered
    generation_pipe: int = 1
    # Ways a mixture's experts are cut, over replicas that see different rows; divides model.experts
    expert: int = 1


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """Devices that the roles placed on them take turns on; pools have no device in common and run at once."""

    roles: tuple[str, ...] = ()  # each role of the algorithm stands in exactly one pool
    hosts: int = 1  # worker processes, one per host; together they run one mesh
    devices_per_host: int = 1
    mesh: MeshConfig = MeshConfig()
    # Of its roles, those that wait in host memory between their uses: a frozen model's weights, the optimizer state
    # of one that is trained.
    offload: tuple[str, ...] = ()
    # Of its roles, those that score in the generation layout: frozen weights are held in it, those that are trained are
    # moved there for the call. Worth it where stages or many tensor ranks make training's layout slow to score in.
    generation_scoring: tuple[str, ...] = ()
    device: str = ""  # kind of its devices, as cluster.devices.kind names one; empty: that one


def _one_pool() -> dict[str, PoolConfig]:
    return {"main": PoolConfig(roles=("actor", "critic", "reference", "reward", "estimator"))}


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """Hosts of one kind that a mapping is searched for, and that plans reckon with."""

    # A name of mapping/devices.py, or a .json profile of `jaxflow.mapping.calibrate`; empty: cpu's
    kind: str = ""
    hosts: int = 1
    devices_per_host: int = 8


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Where the run happens, and how long it waits for what does not answer."""

    launcher: str = "ray"  # ray: workers in Ray actors | inprocess: the same roles in this process, to debug
    platform: str = "cpu"  # cpu: simulated devices | gpu
    # pools: roles, devices and meshes are as `pools` says | auto: they are searched for `devices` (docs/planning.md)
    mapping: str = "pools"
    devices: DevicesConfig = DevicesConfig()
    # With `auto`: hosts of other kinds beside `devices`, by a name of your own; a pool lies on hosts of one kind.
    more_devices: Mapping[str, DevicesConfig] = dataclasses.field(default_factory=dict)
    pools: Mapping[str, PoolConfig] = dataclasses.field(default_factory=_one_pool)  # by a name of your own
    address: str = ""  # empty: a Ray of its own on this machine | auto or host:port: join a running one
    compilation_cache: str = "user"  # user: the user's cache folder | a path | off
    start_timeout_seconds: float = 120.0  # workers must be up by then
    heartbeat_timeout_seconds: float = 60.0  # a worker that gives no sign of life for so long is lost
    # Longest call of a role; then all workers' Python stacks are written down and the workers are lost.
    stage_timeout_seconds: float = 3600.0
    max_restarts: int = 2  # times that one run rebuilds lost workers from the last checkpoint before it fails
