"""One pool in Ray actors: a placement group with a bundle per host, a process in each, calls by reference.

Knows how calls travel and how processes begin and end; knows no role and no dataflow.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.types import UserError
from jaxflow.workers.calls import CallHeader
from jaxflow.workers.host import Host, process_words
from jaxflow.workers.protocol import InputLost, RoleError, WorkerLost
from jaxflow.workers.resource_pool import ResourcePool
from jaxflow.workers.world import World

# Calls run one at a time, in the order they were made: that is the order of the group's collectives. Signs of
# life and stacks have threads of their own.
_HEALTH = "health"
_PATIENCE = 3  # of a process with a silent peer, in units of the watch's
# Programs are compiled for the time that they wait in a collective: it is the same for every stage up to this, so
# that a run with another limit finds its programs compiled.
_LONG_STAGE_SECONDS = 3600.0
_GRACE_SECONDS = 2.0  # a process has to end as Ray tells it to, before SIGKILL
_GONE_SECONDS = 10.0  # a process that SIGKILL was sent to is given so long

ENDED = "the process ended (killed from outside, or out of memory)"
"""What there is to say of a process that is gone."""


class InRay:
    """The processes of one pool; handles are Ray object references."""

    def __init__(self, config: Config, derived: Derived, pool: ResourcePool):
        self.pool, self.grid = pool.name, pool.grid
        self._resources, self._config, self._derived = pool, config, derived
        self._bundles: Any = None
        self._actors: list[ray.actor.ActorHandle] = []
        self._pids: list[int] = []
        self._nodes: list[str] = []

    def start(self, cores: Sequence[tuple[int, ...]]) -> None:
        """Place the pool: reserve its hosts, start a process on each, let them form one world.

        `cores` are those of each process. Raises UserError if they are not up within
        `cluster.start_timeout_seconds`, or devices are missing; WorkerLost if one that was up ends, or takes as
        long again to find the others.
        """
        pool = self._resources
        gpus = pool.devices_per_host if pool.platform == "gpu" else 0
        self._bundles = placement_group([pool.claim] * pool.hosts, "PACK")
        deadline = self._deadline()
        self._wait([self._bundles.ready()], deadline)
        table = placement_group_table(self._bundles)["bundles_to_node_id"]
        self._nodes = [table[process] for process in range(pool.hosts)]
        for process in range(pool.hosts):
            where = PlacementGroupSchedulingStrategy(self._bundles, placement_group_bundle_index=process)
            kind = ray.remote(num_cpus=1, num_gpus=gpus, concurrency_groups={_HEALTH: 2})(Host)
            actor = kind.options(scheduling_strategy=where)
            self._actors.append(actor.remote(self._config, self._derived, pool, process))
        self._pids = self._wait([actor.process_id.remote() for actor in self._actors], deadline)
        deadline = self._deadline()
        (port,) = self._wait([self._actors[0].free_port.remote()], deadline)
        worlds = [self._world(process, port, cores[process]) for process in range(pool.hosts)]
        self._wait([a.start.remote(world) for a, world in zip(self._actors, worlds, strict=True)], deadline)

    def _deadline(self) -> float:
        return time.monotonic() + self._config.cluster.start_timeout_seconds

    def _world(self, process: int, port: int, cores: tuple[int, ...]) -> World:
        pool, cluster = self._resources, self._config.cluster
        loopback = not cluster.address
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        first = "127.0.0.1" if loopback else nodes[self._nodes[0]]
        return World(
            pool=pool.name,
            platform=pool.platform,
            devices_per_process=pool.devices_per_host,
            processes=pool.hosts,
            process_index=process,
            coordinator=f"{first}:{port}",
            loopback=loopback,
            start_timeout_seconds=cluster.start_timeout_seconds,
            # The watch, which can tell who keeps the others waiting, comes first: they can only end over it.
            heartbeat_timeout_seconds=_PATIENCE * cluster.heartbeat_timeout_seconds,
            collective_timeout_seconds=_PATIENCE * max(cluster.stage_timeout_seconds, _LONG_STAGE_SECONDS),
            compilation_cache=pool.compilation_cache,
            cores=cores,
        )

    def _wait(self, references: list[ray.ObjectRef], deadline: float) -> list[Any]:
        """Wait for one answer of each process; the first failure is raised at once, whatever the others do."""
        missing = references
        while missing:
            left = max(0.0, deadline - time.monotonic())
            ready, missing = ray.wait(missing, num_returns=1, timeout=left)
            if not ready:
                raise self._late(references.index(missing[0]))
            try:
                bring(ready)
            except WorkerLost as lost:
                raise self._lost(references.index(ready[0]), f"{ENDED} in stage start", lost.trace) from None
        return bring(references)

    def _late(self, process: int) -> Exception:
        seconds = f"{self._config.cluster.start_timeout_seconds:g} s"
        if self._pids:
            what = f"no answer in stage start for {seconds} (cluster.start_timeout_seconds)"
            return self._lost(process, what, what)
        return UserError(
            f"pool {self.pool}: its {self._resources.hosts} worker processes were not up after {seconds}; raise "
            "cluster.start_timeout_seconds, or see what holds the CPUs or GPUs of the cluster"
        )

    def _lost(self, process: int, message: str, trace: str) -> WorkerLost:
        return WorkerLost("pool", "start", self.words(process), message, trace)

    def words(self, process: int) -> str:
        """Name one of the processes for people."""
        if not self._pids:
            return f"pool {self.pool}, process {process}"
        return process_words(self.pool, process, self._pids[process])

    def place(self, role: str) -> list[ray.ObjectRef]:
        """Begin to build a role in all processes; return the handles of their records."""
        return [actor.place.remote(role) for actor in self._actors]

    def remove(self, role: str) -> list[ray.ObjectRef]:
        """Begin to let a role go; return the handles of the processes' records."""
        return [actor.remove.remote(role) for actor in self._actors]

    def submit(self, process: int, header: CallHeader, handles: Sequence[Any]) -> tuple[list[Any], Any]:
        """Send one process its part of a call and return at once."""
        call = self._actors[process].call.options(num_returns=header.output_count + 1)
        references = call.remote(header, *handles)
        if header.output_count == 0:
            return [], references
        return references[:-1], references[-1]

    def ping(self, process: int) -> ray.ObjectRef:
        """Ask one process for a sign of life."""
        return self._actors[process].ping.options(concurrency_group=_HEALTH).remote()

    def stacks(self, timeout_seconds: float) -> list[str | None]:
        """Return what each process's Python threads do; None for one that gives no answer in time."""
        asked = [actor.stacks.options(concurrency_group=_HEALTH).remote() for actor in self._actors]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_seconds)
        return [_or_none(reference) if reference in answered else None for reference in asked]

    def kill(self) -> None:
        """End every process, stopped ones included, and give the hosts back; returns when they are gone."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        here = ray.get_runtime_context().get_node_id()
        for node in sorted(set(self._nodes)):
            pids = [pid for pid, of in zip(self._pids, self._nodes, strict=False) if of == node]
            if node == here:
                end_processes(pids)
            else:
                where = NodeAffinitySchedulingStrategy(node, soft=False)
                there = ray.remote(num_cpus=0)(end_processes).options(scheduling_strategy=where)
                ray.wait([there.remote(pids)], timeout=_GONE_SECONDS)
        self._actors = []
        if self._bundles is not None:
            remove_placement_group(self._bundles)


def bring(references: Sequence[ray.ObjectRef]) -> list[Any]:
    """Bring values here.

    A role's exception arrives as itself, a process that ended as `WorkerLost`, one before it as `InputLost`.
    """
    try:
        return ray.get(list(references))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RoleError):
            raise error.cause from None
        if isinstance(error.cause, ray.exceptions.RayActorError | ray.exceptions.ObjectLostError):
            raise InputLost("pool", "call", "a process", "an input was lost", str(error)) from None
        raise
    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
        raise WorkerLost("pool", "call", "a process", "the process ended", str(error)) from None


def settle(references: Sequence[ray.ObjectRef], seconds: float) -> bool:
    """Wait until all are there or failed; return whether that came within the time."""
    waiting = list(references)
    return not waiting or not ray.wait(waiting, num_returns=len(waiting), timeout=seconds)[1]


def _or_none(reference: ray.ObjectRef) -> str | None:
    try:
        return bring([reference])[0]
    except RoleError:
        return None


def end_processes(pids: Sequence[int]) -> None:
    """Wait until processes of this machine that were told to end are gone; a stopped one does not listen: SIGKILL."""
    if _all_gone(pids, _GRACE_SECONDS):
        return
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _all_gone(pids, _GONE_SECONDS)


def _all_gone(pids: Sequence[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
