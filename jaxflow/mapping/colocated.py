"""Roles that share devices: what a set of them takes in each stage on so many devices, in its best layouts.

Inside a stage the calls of a set are summed; memory is a hard bound. Knows no other set. What is kept of all layouts
are the options that no other one beats in every stage at once, so nothing is lost for whoever combines sets.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Sequence

from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping import call_seconds, memory, stages
from jaxflow.mapping.layouts import Freedom, generation_layouts, training_layouts
from jaxflow.mapping.load import RoleLoad
from jaxflow.mapping.role_cost import RoleCost, role_cost, tail_seconds
from jaxflow.mapping.stages import Setting

Figures = tuple[float, float, float, float, float]
"""Seconds of generation, preparation and training, those until the first part is generated, and those of preparation
that are left when the last part is there, if not more."""


@dataclasses.dataclass(frozen=True)
class SetOption:
    """One way for a set of roles to share devices."""

    stages: tuple[float, float, float]  # seconds in generation, preparation, training
    first: float  # of generation's seconds, those until the first part of the rows is there
    tail: float  # of preparation's, those that are left when the last part is there, if not more
    devices: int
    layouts: tuple[Parallelism, ...]  # of each role
    rows: int  # generated at once by each replica; 0 where no role of the set generates
    offload: bool
    generation_scoring: tuple[str, ...]  # roles that score in the generation layout
    group: int  # of the cluster's device groups

    @property
    def seconds(self) -> float:
        """Return Σ of the stages: what a step takes where nothing else runs."""
        return sum(self.stages)

    @property
    def figures(self) -> Figures:
        """Return in what another option may be better."""
        return *self.stages, self.first, self.tail


@functools.lru_cache(maxsize=200_000)
def _generation_seconds(load: RoleLoad, layout: Parallelism, setting: Setting, rows: int) -> float:
    return call_seconds.generate_seconds(load, layout, setting, rows).total


def room(setting: Setting) -> float:
    """Return the bytes that a plan may fill on each device."""
    return setting.device.memory_bytes * setting.engine.memory_share


def set_options(
    loads: Sequence[RoleLoad], devices: int, setting: Setting, freedom: Freedom, group: int
) -> list[SetOption]:
    """Return the options of a set on exactly so many devices that no other one beats in every stage."""
    combine = _one_mesh if setting.engine.one_mesh_per_pool else _own_meshes
    kept: list[SetOption] = []
    for table, generator in combine(loads, devices, setting, freedom):
        fastest = [min(costs, key=lambda cost: cost.preparation) for costs in table]
        if _beaten(_least_stages(loads, fastest, generator, setting), kept):
            continue
        choices = _choices(table, freedom, setting)
        for costs in choices:
            if len(choices) > 1 and _beaten(_least_stages(loads, costs, generator, setting), kept):
                continue
            here = cost_set(loads, costs, generator, setting, False, group)
            roomy = here is not None and (
                generator is None or here.rows == stages.replica_rows(generator, setting)
            )
            parted = None
            if freedom.offload and not roomy:  # it takes time, and gains nothing but room
                parted = cost_set(loads, costs, generator, setting, True, group)
            for option in (here, parted):
                if option is not None and not _beaten(option.figures, kept):
                    kept = [other for other in kept if not _beaten(other.figures, [option])] + [option]
    return undominated(kept)


def _choices(
    table: Sequence[Sequence[RoleCost]], freedom: Freedom, setting: Setting
) -> list[tuple[RoleCost, ...]]:
    """Return one cost of each role, without combinations that another one beats in everything."""
    figures = functools.partial(_figures, offload=freedom.offload, parts=setting.workload.parts)
    chosen: list[tuple[RoleCost, ...]] = [()]
    for costs in table:
        chosen = [(*some, cost) for some in chosen for cost in costs]
        if len(costs) > 1:
            chosen = _unbeaten(chosen, figures)
    return chosen


def _beaten(figures: Figures, by: Sequence[SetOption]) -> bool:
    """Return whether one of these is nowhere slower."""
    generation, preparation, training, first, tail = figures
    for other in by:
        a, b, c = other.stages
        no_slower = a <= generation and b <= preparation and c <= training
        if no_slower and other.first <= first and other.tail <= tail:
            return True
    return False


def _least_stages(
    loads: Sequence[RoleLoad], costs: Sequence[RoleCost], generator: Parallelism | None, setting: Setting
) -> Figures:
    """Return the figures of these layouts were memory no limit: all rows generated at once, nothing offloaded."""
    generation = 0.0
    for load in loads:
        if load.generations > 0 and generator is not None:
            rows = stages.replica_rows(generator, setting)
            generation += _generation_seconds(load, generator, setting, rows)
    preparation = training = 0.0
    for cost in costs:
        preparation += cost.preparation
        training += cost.training
    parts = setting.workload.parts
    tail = tail_seconds(((cost.turn, cost.preparation) for cost in costs), parts)
    return generation, preparation, training, generation / parts, preparation if generation > 0 else tail


def undominated(options: Iterable[SetOption]) -> list[SetOption]:
    """Keep what is not beaten in all figures; of equals the first that came."""
    kept: list[SetOption] = []
    for option in sorted(options, key=lambda one: one.figures):
        if not _beaten(option.figures, kept):
            kept.append(option)
    return kept


def cost_set(
    loads: Sequence[RoleLoad],
    costs: Sequence[RoleCost],
    generator: Parallelism | None,
    setting: Setting,
    offload: bool,
    group: int,
) -> SetOption | None:
    """Cost one choice of layouts; None where it does not fit.

    A phase holds what all roles keep at rest and what the phase itself needs; from the switch until the policy learns,
    the generation weights too. With `offload` what can wait in host memory is there but where it is needed.
    Generation takes the rows that fit.
    """
    limit, rest = room(setting), sum(cost.rest for cost in costs)
    kept = rest - sum(cost.parked for cost in costs) if offload else rest
    generation, first, rows, held = 0.0, 0.0, 0, 0.0
    parts = setting.workload.parts
    training = sum(cost.training for cost in costs)
    scoring = []
    for load, cost in zip(loads, costs, strict=True):
        fetched = cost.parked / setting.device.host_bandwidth if offload and not load.trained else 0.0
        scoring.append((load.turn, cost.preparation + fetched))
        if offload and load.trained:
            training += 2 * cost.parked / setting.device.host_bandwidth
        if load.generations > 0 and generator is not None:
            weights = memory.rollout_weights(load, generator, setting)
            weights += memory.prefill_bytes(load, generator, setting)
            rows = _rows_that_fit(load, generator, setting, limit - kept - weights)
            if rows == 0:
                return None
            calls = parts * call_seconds.controller_seconds(generator, setting).total
            made = _generation_seconds(load, generator, setting, rows) + calls
            switch = _transition_seconds(load, generator, setting)
            generation, first = switch + made, switch + made / parts
            if not setting.engine.rollout_offloaded:
                held = memory.rollout_weights(load, generator, setting)
    if not _passes_fit(loads, costs, offload, kept, held, limit):
        return None
    preparation = sum(seconds for _, seconds in scoring)
    return SetOption(
        stages=(generation, preparation, training),
        first=first,
        tail=preparation if rows > 0 else tail_seconds(scoring, parts),
        devices=costs[0].layout.devices,
        layouts=_layouts(loads, costs, generator, setting),
        rows=rows,
        offload=offload,
        generation_scoring=tuple(
            load.role for load, cost in zip(loads, costs, strict=True) if cost.generation_scoring
        ),
        group=group,
    )


def _passes_fit(
    loads: Sequence[RoleLoad],
    costs: Sequence[RoleCost],
    offload: bool,
    kept: float,
    held: float,
    limit: float,
) -> bool:
    """Return whether each scoring pass and each update has room beside what is kept."""
    for load, cost in zip(loads, costs, strict=True):
        own = cost.parked if offload else 0.0
        while_scoring = 0.0 if load.trained else own
        while_learning = 0.0 if load.generations > 0 else held
        if load.scores > 0 and kept + held + while_scoring + cost.scoring_work > limit:
            return False
        if load.trained and kept + while_learning + own + cost.training_work > limit:
            return False
    return kept <= limit


def _layouts(
    loads: Sequence[RoleLoad],
    costs: Sequence[RoleCost],
    generator: Parallelism | None,
    setting: Setting,
) -> tuple[Parallelism, ...]:
    """Return the layout of each role; on one mesh all have the generation sizes of the role that generates, or, where
    none does, of those that score in them."""
    split = next((cost.layout for cost in costs if cost.generation_scoring), None)
    if setting.engine.one_mesh_per_pool and generator is not None:
        split = generator
    return tuple(
        generator if load.generations > 0 and generator is not None else split or cost.layout
        for load, cost in zip(loads, costs, strict=True)
    )


@functools.lru_cache(maxsize=200_000)
def _transition_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> float:
    return call_seconds.transition_seconds(load, layout, setting).total


def _rows_that_fit(load: RoleLoad, layout: Parallelism, setting: Setting, free: float) -> int:
    """Return the rows of a replica to generate at once: all, or equal rounds of what fits; 0 where none does."""
    rows = stages.replica_rows(layout, setting)
    slots = int(free // memory.row_bytes(load, layout, setting))
    if setting.engine.slots:
        slots -= slots % layout.generation_pipe
    most = min(rows, slots)
    if setting.workload.most_rows > 0:
        most = min(most, setting.workload.most_rows)
    if most < 1 or not setting.engine.slots:
        return max(most, 0)
    rounds = -(-rows // most)
    return -(-rows // rounds)


def _one_mesh(loads: Sequence[RoleLoad], devices: int, setting: Setting, freedom: Freedom):
    """Yield every mesh that all roles of a set can share."""
    first, *others = (training_layouts(load, devices, setting, freedom) for load in loads)
    shared = [layout for layout in first if all(layout in other for other in others)]
    generators = [load for load in loads if load.generations > 0]
    for layout in shared:
        costs = [role_cost(load, layout, setting) for load in loads]
        if not generators:
            yield [(cost,) for cost in costs], None
            for split in generation_layouts(loads[0], layout, setting):
                table = _with_scoring_apart(loads, costs, split, setting)
                if any(len(options) > 1 for options in table):
                    yield table, None
        for load in generators:
            for generator in generation_layouts(load, layout, setting):
                yield _with_scoring_apart(loads, costs, generator, setting), generator


def _with_scoring_apart(
    loads: Sequence[RoleLoad], costs: Sequence[RoleCost], layout: Parallelism, setting: Setting
) -> list[tuple[RoleCost, ...]]:
    """Return each role's cost, and where it scores faster in the layout's generation sizes that one too."""
    return [
        (cost, *_scoring_apart(load, layout, setting, cost.preparation))
        for load, cost in zip(loads, costs, strict=True)
    ]


@functools.lru_cache(maxsize=200_000)
def _scoring_apart(
    load: RoleLoad, layout: Parallelism, setting: Setting, preparation: float
) -> tuple[RoleCost, ...]:
    if not stages.may_score_generating(load, layout, setting):
        return ()
    apart = role_cost(load, layout, setting, True)
    return (apart,) if apart.preparation < preparation else ()


def _own_meshes(loads: Sequence[RoleLoad], devices: int, setting: Setting, freedom: Freedom):
    """Yield layouts role by role, without combinations that another one beats in everything.

    What is summed and what is not to be exceeded only grows with every role, so a combination of some roles that is
    beaten stays so with the others beside it.
    """
    figures = functools.partial(_figures, offload=freedom.offload, parts=setting.workload.parts)
    chosen: list[tuple[RoleCost, ...]] = [()]
    for load in loads:
        if load.generations == 0:
            costs = [
                role_cost(load, one, setting) for one in training_layouts(load, devices, setting, freedom)
            ]
            table = _unbeaten([(cost,) for cost in costs], figures)
            chosen = _unbeaten([(*some, cost) for some in chosen for (cost,) in table], figures)
    generators = [load for load in loads if load.generations > 0]
    if not generators:
        yield from (([(cost,) for cost in costs], None) for costs in chosen)
        return
    (load,) = generators
    position = loads.index(load)
    for own, generator in _generating(load, devices, setting, freedom):
        for costs in chosen:
            yield [(cost,) for cost in (*costs[:position], own, *costs[position:])], generator


def _figures(costs: Sequence[RoleCost], offload: bool, parts: int) -> tuple[float, ...]:
    """Return in what one combination of layouts can be better than another."""
    if not costs:
        return ()
    always = (
        sum(cost.preparation for cost in costs),
        sum(cost.training for cost in costs),
        sum(cost.rest for cost in costs),
        max(cost.scoring_work for cost in costs),
        max(cost.training_work for cost in costs),
    )
    if parts > 1:
        always = (*always, tail_seconds(((cost.turn, cost.preparation) for cost in costs), parts))
    if not offload:
        return always
    return (
        *always,
        sum(cost.rest - cost.parked for cost in costs),
        # What waits is moved where it is needed, which takes time, and there it is with what that call needs.
        sum(cost.parked for cost in costs if cost.training > 0),
        sum(cost.parked for cost in costs if cost.training == 0),
        max(cost.scoring_work + (cost.parked if cost.training == 0 else 0.0) for cost in costs),
        max(cost.training_work + cost.parked for cost in costs),
    )


def _unbeaten(entries: Iterable, figures) -> list:
    kept: list[tuple[tuple[float, ...], tuple]] = []
    for mine, entry in sorted(((figures(entry), entry) for entry in entries), key=lambda pair: pair[0]):
        if not any(all(map(operator.le, other, mine)) for other, _ in kept):
            kept.append((mine, entry))
    return [entry for _, entry in kept]


@functools.lru_cache(maxsize=20_000)
def _generating(
    load: RoleLoad, devices: int, setting: Setting, freedom: Freedom
) -> tuple[tuple[RoleCost, Parallelism], ...]:
    """Return a generating role's layouts; of those that generate alike, the ones that no other one beats."""
    alike: dict[tuple[int, ...], list[tuple[RoleCost, Parallelism]]] = {}
    for one in training_layouts(load, devices, setting, freedom):
        cost = role_cost(load, one, setting)
        for generator in generation_layouts(load, one, setting):
            key = (generator.generation_tensor, generator.generation_pipe, generator.tensor, generator.expert)
            alike.setdefault(key, []).append((cost, generator))

    def figures(entry: tuple[RoleCost, Parallelism]) -> tuple[float, ...]:
        switch = _transition_seconds(load, entry[1], setting)
        return (*_figures(entry[:1], freedom.offload, setting.workload.parts), switch)

    return tuple(entry for group in alike.values() for entry in _unbeaten(group, figures))
