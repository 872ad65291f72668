"""One role in one layout: what scoring and training take there, in seconds and bytes. Knows no other role."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping import call_seconds, memory, stages
from jaxflow.mapping.load import RoleLoad
from jaxflow.mapping.stages import Setting


@dataclasses.dataclass(frozen=True)
class RoleCost:
    """One role in one layout, apart from generation."""

    layout: Parallelism
    preparation: float  # seconds
    training: float
    rest: float  # bytes per device
    parked: float  # of these, what can wait in host memory: until it scores if it is frozen, until it learns if not
    scoring_work: float  # beyond what is at rest; 0 where it does not score
    training_work: float
    turn: int
    generation_scoring: bool = False  # it scores in the layout's generation sizes


@functools.lru_cache(maxsize=200_000)
def role_cost(
    load: RoleLoad, layout: Parallelism, setting: Setting, generation_scoring: bool = False
) -> RoleCost:
    """Cost one role's scoring and training in one layout; scoring in its generation sizes where that is asked for."""
    call = call_seconds.controller_seconds(layout, setting).total
    scoring = training = 0.0
    scoring_work = training_work = 0.0
    own = stages.CallLayouts(load, layout, generation_scoring)
    if load.scores > 0:
        calls = call * setting.workload.parts
        scoring = load.scores * (call_seconds.score_seconds(own, setting).total + calls)
        scoring_work = memory.scoring(load, own.scoring, setting).total
        if own.moves:
            scoring_work += memory.scoring_copy(load, layout, setting)
    if load.trained:
        training = call_seconds.train_seconds(load, layout, setting).total + call
        training_work = memory.training(load, layout, setting).total
    rest = memory.at_rest(load, own.resting, setting)
    waiting = memory.parked(load, rest)
    return RoleCost(
        layout,
        scoring,
        training,
        rest.total,
        waiting,
        scoring_work,
        training_work,
        load.turn,
        generation_scoring,
    )


def tail_seconds(scoring: Iterable[tuple[int, float]], parts: int) -> float:
    """Return what is left of preparation when the last of K parts is there: of the role that is called first a K-th,
    of the others all, for a pool makes every part of a call before the next call. Takes (turn, seconds) of each."""
    calls = sorted(call for call in scoring if call[1] > 0.0)
    if not calls:
        return 0.0
    return calls[0][1] / parts + sum(seconds for _, seconds in calls[1:])
