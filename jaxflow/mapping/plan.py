"""A plan: pools, their layouts, bytes by phase, seconds by call, and when each call runs. One object, JSON-able.

Made of a config whose pools are known, whoever chose them. Knows formulas; compiles nothing, starts nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from jaxflow.config import Config, MeshConfig, PoolConfig
from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping import call_seconds, cost, memory, stages
from jaxflow.mapping.asked import engine_of, groups_of, loads_of, parallelism, profile_of, workload_of
from jaxflow.mapping.colocated import room
from jaxflow.mapping.cost import Seconds
from jaxflow.mapping.load import RoleLoad
from jaxflow.mapping.memory import AtRest, AtWork
from jaxflow.mapping.stages import CallLayouts, Setting
from jaxflow.mapping.timeline import timeline
from jaxflow.placement import dealt_cores
from jaxflow.types import Span

_SCORING_STAGES = {"actor": "old_log_prob", "reference": "ref", "critic": "values"}


@dataclasses.dataclass(frozen=True)
class PhaseBytes:
    """What one phase of a pool takes on each device."""

    role: str
    phase: str  # transition | generation | scoring | training
    at_rest: float  # of all roles of the pool, without what waits in host memory
    held: float  # generation weights that wait while others compute
    work: AtWork

    @property
    def total(self) -> float:
        """Return the sum."""
        return self.at_rest + self.held + self.work.total


@dataclasses.dataclass(frozen=True)
class PlannedCall:
    """One call of a step."""

    role: str
    stage: str  # as a run's timeline names it
    step_part: int  # 0: generation, 1: preparation, 2: training
    seconds: Seconds  # where no other pool is at work
    controller_seconds: float = 0.0  # of these, those that pass outside the workers

    @property
    def alone(self) -> float:
        """Return the sum."""
        return self.seconds.total

    @property
    def waiting(self) -> float:
        """Return in how many of them it waits for others, and leaves its cores to whoever else computes there."""
        return self.seconds.idle


@dataclasses.dataclass(frozen=True)
class PlannedRole:
    """One role with a model."""

    role: str
    parameters: int
    rest: AtRest


@dataclasses.dataclass(frozen=True)
class PlannedPool:
    """One pool."""

    name: str
    roles: tuple[str, ...]  # those without a model too
    device: str
    device_bytes: float
    room_bytes: float  # of these, what a plan may fill
    hosts: int
    devices_per_host: int
    mesh: MeshConfig
    offload: tuple[str, ...]  # roles of which something waits in host memory
    generation_scoring: tuple[str, ...]  # roles that score in the generation layout
    models: tuple[PlannedRole, ...]
    phases: tuple[PhaseBytes, ...]
    calls: tuple[PlannedCall, ...]
    rows: int  # generated at once by each replica; 0 where nothing generates

    @property
    def worst(self) -> PhaseBytes | None:
        """Return the phase that takes most; None where the pool holds no model."""
        return max(self.phases, key=lambda phase: phase.total, default=None)

    @property
    def excess(self) -> float:
        """Return by how many bytes the worst phase exceeds what may be filled; 0 where it fits."""
        return max(0.0, self.worst.total - self.room_bytes) if self.worst is not None else 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will be."""

    idle_devices: int  # that no pool has
    pools: tuple[PlannedPool, ...]
    spans: tuple[Span, ...]  # of one step, its start at 0
    tokens_per_step: int

    @property
    def step_seconds(self) -> float:
        """Return the time from the first start to the last end."""
        return max(span.started + span.seconds for span in self.spans)

    @property
    def tokens_per_second(self) -> float:
        """Return prompt and response tokens of a step over its seconds."""
        return self.tokens_per_step / self.step_seconds

    @property
    def excess(self) -> dict[str, float]:
        """Return by how many bytes each pool's worst phase exceeds what it may fill; pools that fit are absent."""
        return {pool.name: pool.excess for pool in self.pools if pool.excess > 0}


def make_plan(config: Config, vocabulary_size: int, roles: Sequence[str]) -> Plan:
    """Plan a config with these roles on its pools."""
    loads = {load.role: load for load in loads_of(config, vocabulary_size, roles)}
    pools = []
    for name, pool in config.cluster.pools.items():
        setting = setting_of(config, name)
        here = tuple(loads[role] for role in pool.roles if role in loads)
        pools.append(_planned_pool(name, pool, here, setting))
    return Plan(
        idle_devices=_idle(config),
        pools=tuple(pools),
        spans=tuple(timeline(pools, config.rollout.parts, _cores(config))),
        tokens_per_step=workload_of(config).tokens,
    )


def setting_of(config: Config, name: str) -> Setting:
    """Return what calls have in common on a pool. A generator's weights come from the policy's pool, over the slower
    network of the two. Calls are costed as if no other pool were at work; where pools share cores the timeline slows
    them down."""
    pool = config.cluster.pools[name]
    device = profile_of(config, pool.device)
    device = device.among(_crowd(config, name, device.cores))
    if "generator" in pool.roles:
        sending = next(one for one in config.cluster.pools.values() if "actor" in one.roles)
        device = device.beside(profile_of(config, sending.device))
    return Setting(workload_of(config), engine_of(config), device, pool.devices_per_host)


def _dealt(config: Config, available: int) -> dict[str, list[tuple[int, ...]]]:
    """Return the cores that a run gives to each process of the pools (workers/launch.py); all, where it gives none."""
    cluster, every = config.cluster, tuple(range(available))
    own = cluster.launcher == "ray" and not cluster.address
    hosts = {name: pool.hosts for name, pool in cluster.pools.items()}
    dealt = dealt_cores(hosts, every if own else ())
    return {name: [cores or every for cores in processes] for name, processes in dealt.items()}


def _crowd(config: Config, name: str, available: int) -> float:
    """Return how many devices on all cores would be as crowded as a pool's on the fullest of its own."""
    load, inside = collections.Counter[int](), config.cluster.pools[name].devices_per_host
    for cores in _dealt(config, available)[name]:
        load.update({core: inside / len(cores) for core in cores})
    return available * max(load.values())


def _cores(config: Config) -> dict[str, set[int]]:
    """Return the cores of each pool if the pools' devices are simulated: by one machine, then."""
    profiles = [profile_of(config, pool.device) for pool in config.cluster.pools.values()]
    if any(profile.simulated == 0 for profile in profiles):
        return {}
    dealt = _dealt(config, min(profile.cores for profile in profiles))
    return {name: set(itertools.chain(*processes)) for name, processes in dealt.items()}


def _idle(config: Config) -> int:
    """Return the devices of the cluster that no pool has; pools that the config describes are the cluster."""
    if config.cluster.mapping == "pools":
        return 0
    placed = sum(pool.hosts * pool.devices_per_host for pool in config.cluster.pools.values())
    return sum(group.devices for group in groups_of(config)) - placed


def _planned_pool(name: str, pool: PoolConfig, loads: Sequence[RoleLoad], setting: Setting) -> PlannedPool:
    layout = parallelism(pool.mesh)
    rows = min(stages.replica_rows(layout, setting), setting.workload.most_rows)
    generates = any(load.generations > 0 for load in loads)
    own = [CallLayouts(load, layout, load.role in pool.generation_scoring) for load in loads]
    return PlannedPool(
        name=name,
        roles=pool.roles,
        device=setting.device.kind,
        device_bytes=setting.device.memory_bytes,
        room_bytes=room(setting),
        hosts=pool.hosts,
        devices_per_host=pool.devices_per_host,
        mesh=pool.mesh,
        offload=pool.offload,
        generation_scoring=pool.generation_scoring,
        models=tuple(
            PlannedRole(
                one.load.role, one.load.model.parameters, memory.at_rest(one.load, one.resting, setting)
            )
            for one in own
        ),
        phases=tuple(phases(own, layout, setting, rows, pool.offload)),
        calls=tuple(calls(own, layout, setting, rows, pool.offload)),
        rows=rows if generates else 0,
    )


def _parked(layouts: Sequence[CallLayouts], setting: Setting, offload: Sequence[str]) -> dict[str, float]:
    """Return what of each role waits in host memory."""
    resting = {one.load.role: memory.at_rest(one.load, one.resting, setting) for one in layouts}
    return {
        one.load.role: memory.parked(one.load, resting[one.load.role]) if one.load.role in offload else 0.0
        for one in layouts
    }


def phases(
    layouts: Sequence[CallLayouts],
    layout: Parallelism,
    setting: Setting,
    rows: int,
    offload: Sequence[str],
) -> Iterator[PhaseBytes]:
    """Yield what each phase of a pool's roles takes on each device."""
    parked = _parked(layouts, setting, offload)
    rest = sum(memory.at_rest(one.load, one.resting, setting).total for one in layouts) - sum(parked.values())
    held = 0.0
    loads = [one.load for one in layouts]
    for load in loads:
        if load.generations > 0:
            held = memory.rollout_weights(load, layout, setting)
            yield PhaseBytes(load.role, "transition", rest, 0.0, memory.transition(load, layout, setting))
            yield PhaseBytes(
                load.role, "generation", rest, 0.0, memory.generation(load, layout, setting, rows)
            )
    held = 0.0 if setting.engine.rollout_offloaded else held
    for one in layouts:
        load = one.load
        if load.scores > 0:
            here = rest + (0.0 if load.trained else parked[load.role])
            here += memory.scoring_copy(load, layout, setting) if one.moves else 0.0
            yield PhaseBytes(load.role, "scoring", here, held, memory.scoring(load, one.scoring, setting))
    for load in loads:
        if load.trained:
            waiting = 0.0 if load.generations > 0 else held
            here = rest + parked[load.role]
            yield PhaseBytes(load.role, "training", here, waiting, memory.training(load, layout, setting))


def calls(
    layouts: Sequence[CallLayouts],
    layout: Parallelism,
    setting: Setting,
    rows: int,
    offload: Sequence[str],
) -> Iterator[PlannedCall]:
    """Yield the calls of a pool's roles in the order that a step makes them; a critic learns before the policy."""
    controller = call_seconds.controller_seconds(layout, setting)
    in_parts = controller.times(setting.workload.parts)
    parked = _parked(layouts, setting, offload)
    loads = [one.load for one in layouts]
    for load in loads:
        if load.generations > 0:
            switch = call_seconds.transition_seconds(load, layout, setting)
            yield PlannedCall(load.role, "transition", 0, switch)
            made = call_seconds.generate_seconds(load, layout, setting, rows)
            yield PlannedCall(load.role, "gen", 0, made + in_parts, in_parts.total)
    for one in sorted(layouts, key=lambda one: one.load.turn):
        load = one.load
        if load.scores > 0:
            once = call_seconds.score_seconds(one, setting) + in_parts
            stage = _SCORING_STAGES.get(load.role, load.role)
            fetched = Seconds() if load.trained else cost.host_move(parked[load.role], setting.device)
            scored = once.times(load.scores) + fetched
            yield PlannedCall(load.role, stage, 1, scored, load.scores * in_parts.total)
    for load in sorted(loads, key=lambda one: one.role == "actor"):
        if load.trained:
            learned = call_seconds.train_seconds(load, layout, setting) + controller
            learned += cost.host_move(2 * parked[load.role], setting.device)
            yield PlannedCall(load.role, f"update_{load.role}", 2, learned, controller.total)


def fits(config: Config, vocabulary_size: int, roles: Sequence[str]) -> bool:
    """Return whether every pool of a config has room for its worst phase."""
    return not make_plan(config, vocabulary_size, roles).excess
