"""When each call of a step runs: every pool one call at a time, in the order that a step makes them.

Knows calls by their part of the step and their seconds. Knows no formula and no device, but whether pools have cores
in common.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from jaxflow.types import Span


class Call(Protocol):
    """What is known of a call; `plan.PlannedCall` is one."""

    @property
    def role(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def step_part(self) -> int: ...
    @property
    def alone(self) -> float:
        """Return its seconds where no other pool is at work."""
        ...

    @property
    def waiting(self) -> float:
        """Return in how many of them it leaves its cores to others."""
        ...


class Pool(Protocol):
    """A pool and its calls."""

    @property
    def name(self) -> str: ...
    @property
    def calls(self) -> Sequence[Call]: ...


@dataclasses.dataclass(eq=False)
class _Task:
    """One call, or one part of it."""

    pool: str
    call: Call
    left: float  # seconds of work, alone
    part: int  # of the responses that it makes or waits for; −1: all of them, and every score
    started: float = 0.0


def timeline(pools: Sequence[Pool], parts: int, cores: Mapping[str, Collection[int]]) -> Iterator[Span]:
    """Yield when each call of a step runs, the step's start at 0, in the order of their starts.

    Responses are generated in `parts` calls; each is scored as it is there, where the policy's own pool has no more to
    generate; a pool makes all parts of one role's scores before the next role's. What is learned waits for every score.
    `cores` are those of each pool whose devices are simulated: of k pools at work on one core each gets a k-th of it,
    and all of a pool waits for its slowest core. Seconds in which a call only waits pass whatever others do, and slow
    nobody down.
    """
    queues = {pool.name: deque(_tasks(pool, parts)) for pool in pools}
    unmade, unscored = _outstanding(queues)
    running: list[_Task] = []
    now = 0.0
    while running or any(queues.values()):
        busy = {task.pool for task in running}
        for name, queue in queues.items():
            if queue and name not in busy and _ready(queue[0], unmade, unscored):
                running.append(queue.popleft())
                running[-1].started = now
        rates = [_rate(task, running, cores) for task in running]
        passed = min(task.left / rate for task, rate in zip(running, rates, strict=True))
        now += passed
        for task, rate in zip(running, rates, strict=True):
            task.left -= rate * passed
        # What rounding leaves of a task that ends with another is no task of its own.
        done = [task for task in running if task.left <= 1e-12 * now]
        running = [task for task in running if task not in done]
        for task in done:
            unmade.discard(task.part) if task.call.stage == "gen" else unscored.discard(task)
            yield Span(task.pool, task.call.role, task.call.stage, task.started, now - task.started, 0, 0)


def _rate(task: _Task, running: Sequence[_Task], cores: Mapping[str, Collection[int]]) -> float:
    """Return how fast a task gets on beside others, 1 where it is alone: 1 / (w + (1 − w) (1 + Σ (1 − w'))).

    w is the share of a call in which it waits; the sum is over the others on that of its cores where it is largest.
    """
    crowd = 0.0
    for core in cores.get(task.pool, ()):
        others = (one for one in running if one is not task and core in cores.get(one.pool, ()))
        crowd = max(crowd, sum(_at_work(one.call) for one in others))
    return 1.0 / (1.0 + _at_work(task.call) * crowd)


def _at_work(call: Call) -> float:
    return 1.0 - call.waiting / call.alone if call.alone > 0.0 else 1.0


def _tasks(pool: Pool, parts: int) -> Iterator[_Task]:
    generating, scoring, learning = (
        [call for call in pool.calls if call.step_part == step_part] for step_part in range(3)
    )
    yield from (_Task(pool.name, call, call.alone, 0) for call in generating if call.stage == "transition")
    for calls in ([call for call in generating if call.stage != "transition"], scoring):
        for call in calls:  # a call's parts are handed to the pool all at once
            yield from (_Task(pool.name, call, call.alone / parts, part) for part in range(parts))
    yield from (_Task(pool.name, call, call.alone, -1) for call in learning)


def _outstanding(queues: dict[str, deque[_Task]]) -> tuple[set[int], set[_Task]]:
    """Return the parts of the responses, and the tasks that learning waits for."""
    tasks = [task for queue in queues.values() for task in queue]
    made = {task.part for task in tasks if task.call.stage == "gen"}
    return made, {task for task in tasks if task.call.step_part == 1}


def _ready(task: _Task, unmade: set[int], unscored: set[_Task]) -> bool:
    if task.call.step_part == 0:
        return True
    if task.call.step_part == 1:
        return task.part not in unmade
    return not unmade and not unscored
