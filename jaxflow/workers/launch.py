"""Brings pools to life: in Ray actors, or in this process. The only file that talks to Ray.

Knows how calls travel; knows no role and no dataflow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
from collections.abc import Iterator
from typing import Any

import ray

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.types import UserError
from jaxflow.workers.future import CallList, LocalFuture, PendingCall
from jaxflow.workers.group import Transport
from jaxflow.workers.host import Host
from jaxflow.workers.protocol import CallRecord, RoleError
from jaxflow.workers.resource_pool import ResourcePool

# Where Ray looks for a token before it looks into the home folder.
_TOKEN_VARIABLES = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


class InProcess:
    """Calls that run here and now; the futures they return are already done."""

    def __init__(self, host: Host, calls: CallList):
        self._host, self._calls = host, calls

    def place(self, role: str) -> None:
        """Build a role in this process."""
        self._host.place(role)

    def remove(self, role: str) -> None:
        """Let a role go."""
        self._host.remove(role)

    def call(self, role: str, method: str, stage: str, arguments: tuple[Any, ...]) -> LocalFuture:
        """Run the method and return its result as a future."""
        outcome: list[CallRecord | RoleError] = []

        def record() -> CallRecord:
            if isinstance(outcome[0], RoleError):
                raise outcome[0]
            return outcome[0]

        self._calls.add(PendingCall(role, method, stage, lambda: len(outcome) == 1, record))
        values = [a.value if isinstance(a, LocalFuture) else a for a in arguments]
        try:
            value, finished = self._host.call(role, method, *values)
        except RoleError as error:
            outcome.append(error)
            raise
        outcome.append(finished)
        return LocalFuture(value)


@dataclasses.dataclass(frozen=True)
class RayFuture:
    """A value in Ray's object store, or on its way there."""

    reference: ray.ObjectRef
    role: str
    method: str
    process: str  # where it is made, in words

    def result(self) -> Any:
        """Wait for the value and bring it here; a role's exception arrives as itself."""
        try:
            return ray.get(self.reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RoleError):
                raise error.cause from None
            raise
        except (ray.exceptions.RayActorError, ray.exceptions.OwnerDiedError) as error:
            message = "the process ended (killed from outside, or out of memory); the same command continues"
            raise RoleError(self.role, self.method, self.process, message, str(error)) from None


class InRay:
    """Calls to a Ray actor; data goes from worker to worker by reference."""

    def __init__(self, actor: ray.actor.ActorHandle, process: str, calls: CallList):
        self._actor, self._process, self._calls = actor, process, calls

    def place(self, role: str) -> None:
        """Build a role in the actor's process and wait for it."""
        RayFuture(self._actor.place.remote(role), role, "place", self._process).result()

    def remove(self, role: str) -> None:
        """Let a role go."""
        RayFuture(self._actor.remove.remote(role), role, "remove", self._process).result()

    def call(self, role: str, method: str, stage: str, arguments: tuple[Any, ...]) -> RayFuture:
        """Send the call and return at once."""
        references = [a.reference if isinstance(a, RayFuture) else a for a in arguments]
        value, record = self._actor.call.options(num_returns=2).remote(role, method, *references)
        self._calls.add(
            PendingCall(
                role,
                method,
                stage,
                done=lambda: not ray.is_initialized() or bool(ray.wait([record], timeout=0)[0]),
                record=RayFuture(record, role, method, self._process).result,
            )
        )
        return RayFuture(value, role, method, self._process)


@contextlib.contextmanager
def _local_ray() -> Iterator[None]:
    """Run a Ray of our own on this machine: loopback alone, a token of its own, no dashboard, no usage reports."""
    # Unset, Ray turns token authentication on for a cluster it starts itself; set by us after `import ray`, it
    # would not see it. A user's opt-out is for other clusters: whoever can talk to this one runs code as its user.
    if os.environ.get("RAY_AUTH_MODE") != "token":
        os.environ.pop("RAY_AUTH_MODE", None)
    # A token of this run alone: the file that Ray would make in the home folder can be read by others.
    if not _TOKEN_VARIABLES & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def launched(config: Config, derived: Derived, pool: ResourcePool, calls: CallList) -> Iterator[Transport]:
    """Bring up the pool's processes and give a way to call them; they end with the context.

    Raises UserError if they do not come up within `cluster.start_timeout_seconds`, or lack devices.
    """
    if config.cluster.launcher == "inprocess":
        host = Host(config, derived, pool)
        host.start()
        yield InProcess(host, calls)
        return
    with _local_ray():
        gpus = pool.devices if pool.platform == "gpu" else 0
        actor = ray.remote(Host).options(num_cpus=1, num_gpus=gpus).remote(config, derived, pool)
        started = actor.start.remote()
        ready, _ = ray.wait([started], timeout=config.cluster.start_timeout_seconds)
        if not ready:
            raise UserError(
                f"pool {pool.name}: no worker process after {config.cluster.start_timeout_seconds:.0f} s; "
                "raise cluster.start_timeout_seconds, or see what holds this machine's CPUs or GPUs"
            )
        number = RayFuture(started, "pool", "start", f"pool {pool.name}").result()
        try:
            yield InRay(actor, f"pool {pool.name}, process {number}", calls)
        finally:
            calls.forget()  # another thread may ask after them, and Ray is about to go
