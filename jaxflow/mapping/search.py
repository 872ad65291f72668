"""HybridFlow's Algorithm 1: which roles share devices, and how many each set of them gets.

Every set partition × every allocation × the options of each set (`colocated`): a stage takes as long as the slowest
set, stages add up. Exact: allocations are left out only where a bound shows that they cannot be among the wanted
ones. Deterministic. Knows roles by their loads, no algorithm by name.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping import memory
from jaxflow.mapping.colocated import SetOption, room, set_options, undominated
from jaxflow.mapping.devices import DeviceGroup
from jaxflow.mapping.engine_profile import EngineProfile
from jaxflow.mapping.layouts import Freedom, divisors
from jaxflow.mapping.load import RoleLoad, Workload
from jaxflow.mapping.stages import Setting


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be mapped onto what."""

    loads: tuple[RoleLoad, ...]
    workload: Workload
    cluster: tuple[DeviceGroup, ...]
    engine: EngineProfile
    freedom: Freedom

    def setting(self, group: int) -> Setting:
        """Return what calls have in common on one group's devices."""
        devices = self.cluster[group]
        return Setting(self.workload, self.engine, devices.profile, devices.devices_per_host)


@dataclasses.dataclass(frozen=True)
class PlacedSet:
    """One pool of a mapping."""

    roles: tuple[str, ...]
    option: SetOption
    allocated: int  # devices that the search gave it; the option may use fewer


@dataclasses.dataclass(frozen=True)
class Mapping:
    """A placement, its allocation and layouts, and what a step takes."""

    sets: tuple[PlacedSet, ...]
    stages: tuple[float, float, float]  # the second: what preparation takes after all is generated

    @property
    def seconds(self) -> float:
        """Return Σ over stages of the slowest set's."""
        return sum(self.stages)


Progress = tuple[float, float, float, float, float, float]
"""Of some sets the slowest seconds each: until the first part is generated, until all is, of preparation by the set
that generates and by others, of the latter's what is left when the last part is there, of training."""


def progress(option: SetOption) -> Progress:
    """Return what one set takes."""
    generation, preparation, training = option.stages
    if option.rows > 0:
        return option.first, generation, preparation, 0.0, 0.0, training
    return 0.0, 0.0, 0.0, preparation, option.tail, training


def joined(made: Progress) -> tuple[float, float, float]:
    """Return the stages of a step in which sets work at the same time.

    The set that generates prepares when it has generated all. Others begin with the first part, and cannot end before
    the last one is there and the role that is called first has prepared it, and then the others all: S seconds, of
    which S' are that role's, in K parts end at max(first + S, all + S' / K + S − S').
    """
    first, generation, own, others, tail, training = made
    preparation = max(own, tail, others - (generation - first))
    return generation, preparation, training


def partitions(count: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield every way to part 0 … count − 1 into sets, the whole in one set first: Bell's number of them."""

    def grow(item: int, blocks: tuple[tuple[int, ...], ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
        if item == count:
            yield blocks
            return
        for i, block in enumerate(blocks):
            yield from grow(item + 1, (*blocks[:i], (*block, item), *blocks[i + 1 :]))
        yield from grow(item + 1, (*blocks, (item,)))

    yield from grow(0, ())


def pool_sizes(group: DeviceGroup) -> tuple[int, ...]:
    """Return the numbers of devices that a pool may have: any of one host's; of several hosts, whole ones or parts
    that pack into hosts without a gap (a chain of divisors). Parts are worth it on few hosts alone."""
    inside, hosts = group.devices_per_host, group.hosts
    if hosts == 1:
        return tuple(range(1, inside + 1))
    whole = tuple(inside * count for count in range(1, hosts + 1))
    return (*_chain(inside), *whole) if hosts <= _HOSTS_TO_SHARE else whole


_HOSTS_TO_SHARE = 4


def _chain(number: int) -> list[int]:
    """Return a chain of proper divisors, each dividing the next: halves where it can."""
    found = []
    while number > 1:
        number = max(size for size in divisors(number) if size < number)
        found.append(number)
    return sorted(found)


class Search:
    """One problem's search; tables of sets are made once and shared by all partitions."""

    def __init__(self, problem: Problem, wanted: int):
        """Look for the `wanted` best mappings, each of another partition."""
        self._problem, self._wanted = problem, wanted
        self.devices = tuple(group.devices for group in problem.cluster)
        self._best: list[tuple[float, int, Mapping]] = []  # a heap, the worst of the wanted first
        self._sizes = tuple(pool_sizes(group) for group in problem.cluster)
        self._settings = tuple(problem.setting(group) for group in range(len(problem.cluster)))
        self._tables: dict[tuple[tuple[int, ...], int], Table] = {}
        self._scored: dict[tuple, tuple[_Scored, ...]] = {}

    def run(self, among: Sequence[tuple[tuple[int, ...], ...]] | None = None) -> tuple[Mapping, ...]:
        """Return the best mappings of each partition (of these, or of all), the fastest first; none if none fits."""
        chosen = partitions(len(self._problem.loads)) if among is None else among
        for number, partition in enumerate(chosen):
            if len(partition) <= sum(self.devices):
                self._of_partition(number, partition)
        ordered = sorted(self._best, key=lambda entry: (-entry[0], -entry[1]))
        return tuple(mapping for _, _, mapping in ordered)

    def _bound(self) -> float:
        return -self._best[0][0] if len(self._best) == self._wanted else math.inf

    def _of_partition(self, number: int, partition: tuple[tuple[int, ...], ...]) -> None:
        loads = self._problem.loads
        frozen = tuple(block for block in partition if not any(_several(loads[i]) for i in block))
        moving = tuple(block for block in partition if block not in frozen)
        found = _Allocation(self, moving, frozen, self._bound()).best()
        if found is None:
            return
        total, vector, options = found
        sets = tuple(
            PlacedSet(tuple(loads[i].role for i in block), *options[block])
            for block in sorted(partition, key=lambda block: block[0])
        )
        entry = (-total, -number, Mapping(sets, vector))
        if len(self._best) < self._wanted:
            heapq.heappush(self._best, entry)
        else:
            heapq.heapreplace(self._best, entry)

    def table(self, block: tuple[int, ...], group: int) -> Table:
        """Return the options of a set on every number of devices of a group."""
        if (block, group) not in self._tables:
            self._tables[block, group] = self._new_table(block, group)
        return self._tables[block, group]

    def _new_table(self, block: tuple[int, ...], group: int) -> Table:
        loads = [self._problem.loads[i] for i in block]
        setting = self._settings[group]
        front: list[SetOption] = []
        steps = []
        for size in self._sizes[group]:
            new = set_options(loads, size, setting, self._problem.freedom, group)
            grown = undominated([*front, *new])
            if grown != front:
                steps.append((size, tuple(option for option in grown if option.devices == size)))
            front = grown
        return Table(tuple(steps))

    def scoring(self, frozen: tuple[tuple[int, ...], ...], remaining: tuple[int, ...]) -> tuple[_Scored, ...]:
        """Return how fast frozen sets can score on what remains: what nothing else beats; empty if they do not fit.

        The slowest of them counts, so each is asked for no more than the others need anyway.
        """
        if not frozen:
            return (_Scored(0.0, 0.0, ()),)
        if (frozen, remaining) not in self._scored:
            self._scored[frozen, remaining] = _fastest(self._score(frozen, remaining))
        return self._scored[frozen, remaining]

    def _score(self, frozen: tuple[tuple[int, ...], ...], remaining: tuple[int, ...]) -> Iterator[_Scored]:
        block, *others = frozen
        for group, left in enumerate(remaining):
            for size, options in self.table(block, group).steps:
                if size > left:
                    break
                rests = self.scoring(
                    tuple(others), (*remaining[:group], left - size, *remaining[group + 1 :])
                )
                for rest, option in itertools.product(rests, options):
                    yield _Scored(
                        max(option.stages[1], rest.seconds),
                        max(option.tail, rest.tail),
                        ((block, option, size), *rest.chosen),
                    )


def _fastest(found: Iterable[_Scored]) -> tuple[_Scored, ...]:
    """Keep what nothing beats in both figures; of equals the first that came."""
    kept: list[_Scored] = []
    for one in sorted(found, key=lambda one: (one.seconds, one.tail)):
        if not kept or one.tail < kept[-1].tail:
            kept.append(one)
    return tuple(kept)


_NEVER = (math.inf,) * 6


@dataclasses.dataclass(frozen=True)
class Table:
    """What a set gains with more devices: (devices, options that fewer devices do not beat), ascending."""

    steps: tuple[tuple[int, tuple[SetOption, ...]], ...]

    @functools.cached_property
    def floors(self) -> tuple[tuple[int, Progress], ...]:
        """Return the least of all seconds that up to so many devices can reach."""
        floor, found = _NEVER, []
        for size, options in self.steps:
            for option in options:
                floor = tuple(map(min, floor, progress(option)))
            found.append((size, floor))
        return tuple(found)

    def floor(self, devices: int) -> Progress:
        """Return the least of all seconds on at most so many devices; infinite where nothing fits."""
        least = _NEVER
        for size, floor in self.floors:
            if size > devices:
                break
            least = floor
        return least


@dataclasses.dataclass(frozen=True)
class _Scored:
    seconds: float
    tail: float
    chosen: tuple[tuple[tuple[int, ...], SetOption, int], ...]


def _several(load: RoleLoad) -> bool:
    """Return whether a role works in another stage than preparation."""
    return load.trained or load.generations > 0


class _Allocation:
    """The best allocation of one partition: branch and bound over the sets that learn or generate."""

    def __init__(self, search: Search, moving: tuple, frozen: tuple, bound: float):
        self._search, self._moving, self._frozen = search, moving, frozen
        self._bound = bound
        self._found: tuple[float, tuple[float, float, float], dict] | None = None

    def best(self):
        """Return (seconds, stages, option and devices of each set), or None where nothing is below the bound."""
        self._place(0, self._search.devices, (0.0,) * 6, ())
        return self._found

    def _seconds(self, made: Progress) -> float:
        return sum(joined(made))

    def _place(self, index: int, remaining: tuple[int, ...], made: Progress, chosen: tuple) -> None:
        if index == len(self._moving):
            self._finish(remaining, made, chosen)
            return
        if self._least(index, remaining, made) >= self._bound:
            return
        block = self._moving[index]
        for group, left in enumerate(remaining):
            for size, options in reversed(self._search.table(block, group).steps):
                if size > left:
                    continue
                after = (*remaining[:group], left - size, *remaining[group + 1 :])
                for option in options:
                    slowest = tuple(map(max, made, progress(option)))
                    if self._seconds(slowest) < self._bound:
                        self._place(index + 1, after, slowest, (*chosen, (block, option, size)))

    def _least(self, index: int, remaining: tuple[int, ...], made: Progress) -> float:
        """Return what the sets still to be placed cannot be faster than, each with all that remains."""
        least = made
        for block in self._moving[index:]:
            floors = [self._search.table(block, group).floor(left) for group, left in enumerate(remaining)]
            least = tuple(map(max, least, tuple(map(min, *floors)) if len(floors) > 1 else floors[0]))
        return self._seconds(least) if math.inf not in least else math.inf

    def _finish(self, remaining: tuple[int, ...], made: Progress, chosen: tuple) -> None:
        first, generation, own, others, tail, training = made
        for scored in self._search.scoring(self._frozen, remaining):
            slowest = (first, generation, own, max(others, scored.seconds), max(tail, scored.tail), training)
            whole = joined(slowest)
            total = sum(whole)
            if total < self._bound:
                self._bound = total
                placed = (*chosen, *scored.chosen)
                self._found = (total, whole, {block: (option, size) for block, option, size in placed})


_UNCUT = Parallelism(data=1, fsdp=1, tensor=1, generation_tensor=1, pipe=1, generation_pipe=1)


def hopeless(problem: Problem) -> bool:
    """Return whether the roles' state alone, cut over all devices, is more than these may fill, or the weights that
    generate, cut over a host's: no layout fits then.

    Of a model that may wait in host memory what waits counts while it learns, one model at a time.
    """
    settings = [problem.setting(group) for group in range(len(problem.cluster))]
    have = sum(group.devices * room(one) for group, one in zip(problem.cluster, settings, strict=True))
    kept, learning = 0.0, 0.0
    for load in problem.loads:
        rest = memory.at_rest(load, _UNCUT, settings[0])
        waiting = memory.parked(load, rest) if problem.freedom.offload else 0.0
        kept += rest.total - waiting
        if load.trained:
            gradients = memory.gradient_bytes(load, _UNCUT, settings[0]) if rest.gradients == 0.0 else 0.0
            learning = max(learning, waiting + gradients)
    never = any(load.generations > 0 and not _can_generate(load, settings) for load in problem.loads)
    return kept + learning > have or never


def _can_generate(load: RoleLoad, settings: Sequence[Setting]) -> bool:
    """Return whether the weights that generate fit on some kind of device, cut as often as can be."""
    decoder = load.model.decoder
    for setting in settings:
        ways = setting.devices_per_host * (decoder.layers if setting.engine.generation_pipes else 1)
        size = setting.engine.rollout_bytes * load.model.share(ways, max(decoder.experts, 1))
        if size <= room(setting):
            return True
    return False


def search(problem: Problem, wanted: int = 4) -> tuple[Mapping, ...]:
    """Return the fastest mapping and its runners-up, each of another partition; empty where nothing fits."""
    return () if hopeless(problem) else Search(problem, wanted).run()
