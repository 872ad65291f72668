"""One worker process of a pool: owns its devices, hosts the roles placed there, runs one call at a time.

Knows no dataflow and does not import Ray: the same class lives in a Ray actor or in the controller's process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.engine.mesh import make_mesh
from jaxflow.types import UserError
from jaxflow.workers.model_free_roles import Estimator, Reward
from jaxflow.workers.protocol import CallRecord, RoleError, RoleRefusal, exposed_methods, now
from jaxflow.workers.resource_pool import ResourcePool
from jaxflow.workers.roles import Actor, Critic, Reference, Student

ROLES = {
    "actor": Actor,
    "critic": Critic,
    "estimator": Estimator,
    "reference": Reference,
    "reward": Reward,
    "student": Student,
}


def _claim_devices(pool: ResourcePool) -> list[jax.Device]:
    """Return the pool's devices in this process; simulated ones are made here.

    Raises UserError if they are not there, or if this process already runs another number of them.
    """
    if pool.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", pool.compilation_cache)
        # Small programs are most of a small run's start; reading one back beats compiling it from 0.1 s on.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if pool.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
        try:
            jax.config.update("jax_num_cpu_devices", pool.devices)
        except RuntimeError:
            logging.getLogger(__name__).info("this process had set its devices up before")
    try:
        devices = jax.devices(pool.platform)
    except RuntimeError as error:
        raise UserError(f"pool {pool.name}: no {pool.platform} devices here ({error})") from error
    if len(devices) < pool.devices:
        raise UserError(
            f"pool {pool.name} needs {pool.devices} {pool.platform} devices, found {len(devices)}"
        )
    return devices[: pool.devices]


class Host:
    """Roles on one mesh in one process."""

    def __init__(self, config: Config, derived: Derived, pool: ResourcePool):
        self._config, self._derived, self._pool = config, derived, pool
        self._mesh: Mesh | None = None
        self._roles: dict[str, Any] = {}

    def start(self) -> int:
        """Claim the pool's devices and return this process's id."""
        with self._reporting("pool", "start"):
            sizes, devices = self._pool.mesh, _claim_devices(self._pool)
            tensor = sizes.tensor * sizes.micro
            self._mesh = make_mesh(sizes.data, sizes.fsdp, tensor, sizes.tensor, devices)
        return os.getpid()

    def place(self, role: str) -> None:
        """Build a role here."""
        with self._reporting(role, "place"):
            self._roles[role] = ROLES[role](self._config, self._derived, self._mesh)

    def remove(self, role: str) -> None:
        """Let a role and its arrays go."""
        del self._roles[role]

    def call(self, role: str, method: str, *arguments: Any) -> tuple[Any, CallRecord]:
        """Run one exposed method of a role; an exception leaves with role, method and process in it."""
        exposed = exposed_methods(ROLES[role])[method]
        started = now()
        with self._reporting(role, method):
            value = exposed.function(self._roles[role], *arguments)
        return value, CallRecord(role, method, exposed.stage, started, now() - started)

    @contextlib.contextmanager
    def _reporting(self, role: str, method: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            kind = RoleRefusal if isinstance(error, UserError) else RoleError
            process = f"pool {self._pool.name}, process {os.getpid()}"
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise kind(role, method, process, message, traceback.format_exc()) from None
