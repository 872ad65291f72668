"""A set of devices with a name, before anything runs on it. Knows no role and does not import Ray."""

from __future__ import annotations

import dataclasses

from jaxflow.batch_algebra import MeshSizes


@dataclasses.dataclass(frozen=True)
class ResourcePool:
    """Devices that one group of worker processes owns; roles given the same pool take turns on it."""

    name: str
    platform: str  # cpu: simulated devices | gpu
    devices: int
    mesh: MeshSizes
    compilation_cache: str  # folder of compiled programs; empty: off
