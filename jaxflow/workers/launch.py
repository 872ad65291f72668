"""Brings the pools of a run to life, in Ray actors or in this process, and gives the roles' handles.

Knows which pools there are and how rows are cut between them; knows no dataflow.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.placement import accelerators, dealt_cores
from jaxflow.types import Span
from jaxflow.workers import in_process
from jaxflow.workers.cast import role_class
from jaxflow.workers.cluster import running
from jaxflow.workers.future import CallList, Fetch, Piece, RowsFuture
from jaxflow.workers.group import Exchange, Traffic, Transport, WorkerGroup
from jaxflow.workers.host import Host
from jaxflow.workers.in_process import InProcess
from jaxflow.workers.in_ray import InRay, settle
from jaxflow.workers.protocol import exposed_methods
from jaxflow.workers.resource_pool import ResourcePool
from jaxflow.workers.row_values import byte_count, row_count, take_rows
from jaxflow.workers.transfer import cut_at
from jaxflow.workers.watch import Watch, WatchedPool
from jaxflow.workers.world import World, join

_PEERS_SECONDS = 2.0  # by which the processes of a group end the same call
# Roles that live before the algorithm's own do, each where the role that it teaches will.
_TEACHERS = {"student": "actor", "verifier": "reward"}


class Workers:
    """The processes of a run, as the controller sees them."""

    def __init__(
        self,
        config: Config,
        pools: Sequence[ResourcePool],
        transports: Mapping[str, Transport],
        calls: CallList,
        fetch: Fetch,
        settle: Callable[[Sequence[Any], float], bool],
        store: Callable[[Any], Any],
    ):
        """Join the pools of a run; the last three are how their transport waits, lets calls end, and keeps rows."""
        self.calls, self.traffic = calls, Traffic()
        self._config, self._pools, self._transports = config, pools, transports
        self._fetch, self._settle, self._store = fetch, settle, store
        self._cuts: dict[int, tuple[int, ...]] = {}
        self._exchange = Exchange(calls, self.fetch, self.put, self.cuts, config.rollout.parts, self.traffic)

    def group(self, role: str) -> WorkerGroup:
        """Build a role in the processes of its pool and return its handle."""
        home = _TEACHERS.get(role, role)
        pool = next(pool.name for pool in self._pools if home in pool.roles)
        return WorkerGroup(role, role_class(self._config, role), self._transports[pool], self._exchange)

    def put(self, batch: Any) -> RowsFuture:
        """Hand the controller's own rows to the store, in the pieces that the pools will ask for."""
        rows = row_count(batch)
        pieces = []
        for start, stop in itertools.pairwise((0, *self.cuts(rows), rows)):
            taken = take_rows(batch, start, stop)
            self.traffic.sent += byte_count(taken)
            pieces.append(Piece(start, stop, self._store(taken)))
        return RowsFuture(tuple(pieces), (), self.fetch)

    def fetch(self, handles: Sequence[Any]) -> list[Any]:
        """Wait for values and bring them here; raises what their calls raised."""
        values = self._fetch(handles)
        self.traffic.received += sum(map(byte_count, values))
        return values

    def collect(self) -> list[list[Span]]:
        """Wait for all calls made and return what they did, in order: each call, then what happened inside it."""
        calls = self.calls.collect(self._fetch)
        self.traffic.received += byte_count(calls)
        return calls

    def settled(self, seconds: float) -> bool:
        """Wait until all calls have ended, well or badly; return whether they did in that time.

        A call that ended in one process and not in its peers waits in a collective that will never be whole.
        """
        deadline = time.monotonic() + seconds
        for call in self.calls.unfinished:
            if self._settle(call.records, min(_PEERS_SECONDS, max(0.0, deadline - time.monotonic()))):
                continue
            if any(self._settle([record], 0.0) for record in call.records):
                return False
            if not self._settle(call.records, max(0.0, deadline - time.monotonic())):
                return False
        return True

    def any_succeeded(self, method: str) -> bool:
        """Return whether a pending call of this method ended without an exception; waits for those calls."""
        return self.calls.any_succeeded(method, self._fetch)

    def cuts(self, rows: int) -> tuple[int, ...]:
        """Return the inner rows at which a batch is cut, so that every process of every pool gets whole pieces."""
        if rows not in self._cuts:
            self._cuts[rows] = tuple(sorted(self._edges(rows) - {0, rows}))
        return self._cuts[rows]

    def _edges(self, rows: int) -> set[int]:
        parts = max(1, min(self._config.rollout.parts, rows))
        bounds = [rows * part // parts for part in range(parts + 1)]
        spans = {(0, rows), *itertools.pairwise(bounds)}
        edges = set(bounds)
        for pool in self._pools:
            classes = [role_class(self._config, role) for role in pool.roles]
            methods = [method for cls in classes for method in exposed_methods(cls).values()]
            for protocol in {method.protocol for method in methods}:
                for start, stop in spans:
                    edges |= {start + edge for edge in cut_at(protocol.distribute(pool.grid, stop - start))}
        return edges


def resource_pools(config: Config, derived: Derived) -> list[ResourcePool]:
    """Describe the pools of a run; nothing is claimed."""
    folders = {"off": "", "user": str(_user_cache() / "jaxflow" / "programs")}
    cache, claimed = config.cluster.compilation_cache, accelerators(config)
    return [
        ResourcePool(
            name=name,
            platform=config.cluster.platform,
            hosts=plan.hosts,
            devices_per_host=plan.devices_per_host,
            mesh=plan.mesh,
            roles=plan.roles,
            compilation_cache=folders.get(cache, cache),
            offload=plan.offload,
            generation_scoring=plan.generation_scoring,
            accelerator=claimed[name],
        )
        for name, plan in derived.pools.items()
    ]


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


@contextlib.contextmanager
def connected(config: Config, derived: Derived) -> Iterator[None]:
    """Hold the cluster that pools are placed on, for as many launches as it takes."""
    if config.cluster.launcher == "inprocess":
        yield
        return
    with running(config.cluster.address, sum(plan.hosts for plan in derived.pools.values())):
        yield


@contextlib.contextmanager
def launched(config: Config, derived: Derived, calls: CallList, workdir: Path) -> Iterator[Workers]:
    """Place the pools and give the way to call them; their processes end with the context.

    Raises UserError if they do not come up within `cluster.start_timeout_seconds`, or lack devices.
    """
    pools = resource_pools(config, derived)
    if config.cluster.launcher == "inprocess":
        pools = [pool.in_one_process() for pool in pools]
        transports = _in_this_process(config, derived, pools)
        yield Workers(config, pools, transports, calls, in_process.fetch, in_process.settle, in_process.store)
        return
    groups = [InRay(config, derived, pool) for pool in pools]
    cores = dealt_cores({pool.name: pool.hosts for pool in pools}, _cores(config))
    try:
        for group in groups:
            group.start(cores[group.pool])
        cluster = config.cluster
        watch = Watch(
            groups, calls, cluster.heartbeat_timeout_seconds, cluster.stage_timeout_seconds, workdir
        )
        transports = {group.pool: WatchedPool(group, calls, watch) for group in groups}
        yield Workers(config, pools, transports, calls, watch.fetch, settle, ray.put)
    finally:
        calls.forget()  # another thread may ask after them, and their processes are about to go
        for group in groups:
            group.kill()


def _cores(config: Config) -> list[int]:
    """Return the cores to deal: none where devices are not simulated on them, or on machines not our own."""
    ours = config.cluster.platform == "cpu" and not config.cluster.address
    return sorted(os.sched_getaffinity(0)) if ours else []


def _in_this_process(config: Config, derived: Derived, pools: Sequence[ResourcePool]) -> dict[str, InProcess]:
    """Give every pool its own devices of this process."""
    world = World(
        pool="all",
        platform=config.cluster.platform,
        devices_per_process=sum(pool.devices for pool in pools),
        processes=1,
        process_index=0,
        coordinator="",
        loopback=True,
        start_timeout_seconds=config.cluster.start_timeout_seconds,
        heartbeat_timeout_seconds=config.cluster.heartbeat_timeout_seconds,
        collective_timeout_seconds=config.cluster.stage_timeout_seconds,
        compilation_cache=pools[0].compilation_cache,
        cores=(),
    )
    devices, transports, start = join(world), {}, 0
    for pool in pools:
        host = Host(config, derived, pool, 0)
        host.use(devices[start : start + pool.devices])
        transports[pool.name] = InProcess(pool, host)
        start += pool.devices
    return transports
