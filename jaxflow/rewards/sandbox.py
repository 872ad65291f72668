"""Scoring with a function of the user's, in processes that can be killed: a few workers, rows dealt out to them.

A call that hangs, crashes, eats memory or floods its output costs its rows a `Failure` and its worker a
replacement, while the other workers go on. Knows no reward function but where it is; knows neither Ray nor JAX.
"""

from __future__ import annotations

import collections
import functools
import logging
import select
import time
import weakref
from collections.abc import Collection, Sequence

from jaxflow.rewards.sandbox_process import Call, FunctionFile, Limits, Worker
from jaxflow.rewards.verdict import Case, Failure, Verdict

_MESSAGE_SECONDS = 0.05  # of calls that a worker is given at once
_MOST_CALLS = 64
_UNEXPLAINED_ENDS = 3  # of workers that had not begun, before rows are blamed for them


class Sandbox:
    """A function of the user's and the workers that call it. A `Judge`."""

    def __init__(self, function: FunctionFile, limits: Limits):
        self._function, self._limits = function, limits
        self._workers: list[Worker] = []
        self._seconds_per_call = 0.01  # a guess, until some are made
        weakref.finalize(self, _kill_all, self._workers)

    def check(self) -> None:
        """Start a worker and wait until it has imported the file; `UserError` if it cannot."""
        self._hire(1)
        while self._workers[0].busy:
            self._wait()
            self._workers[0].attend()
        _say_missing(tuple(self._workers[0].missing_limits))

    def check_sources(self, data_sources: Collection[str]) -> None:
        """Nothing: what to make of a data source is the function's own."""

    def close(self) -> None:
        """Kill all workers."""
        _kill_all(self._workers)

    def judge(self, cases: Sequence[Case]) -> list[Verdict | Failure]:
        """Score every case, in calls of one row or, for a batch function, in one call."""
        rows = range(len(cases))
        calls = [tuple(rows)] if self._function.batch else [(row,) for row in rows]
        waiting: collections.deque[Call] = collections.deque(calls if cases else ())
        results: dict[int, Verdict | Failure] = {}
        unexplained = 0
        while len(results) < len(cases):
            self._hire(len(waiting))
            for worker in self._workers:
                if worker.idle and waiting:
                    worker.give([waiting.popleft() for _ in range(self._share(len(waiting)))], cases)
            self._wait()
            for worker in self._workers:
                done, returned = worker.attend()
                results |= done
                if done and worker.idle:
                    self._seconds_per_call = worker.seconds_per_call
                waiting.extendleft(reversed(returned))
                unexplained += not worker.alive and not done
            if unexplained >= _UNEXPLAINED_ENDS:
                missing = [row for row in rows if row not in results]
                results |= dict.fromkeys(missing, Failure("crash", "its processes end before they begin"))
        return [results[row] for row in rows]

    def _share(self, waiting: int) -> int:
        """Return how many calls a worker gets at once: few enough that all workers end together."""
        fair = -(-waiting // self._limits.processes)
        return max(1, min(_MOST_CALLS, fair, int(_MESSAGE_SECONDS / self._seconds_per_call)))

    def _hire(self, calls: int) -> None:
        """Replace the workers that ended, and have as many as there are calls for, up to the limit."""
        self._workers[:] = [worker for worker in self._workers if worker.alive]
        busy = sum(worker.busy for worker in self._workers)
        while len(self._workers) < min(self._limits.processes, busy + calls):
            self._workers.append(Worker(self._function, self._limits))

    def _wait(self) -> None:
        """Sleep until a worker has something to say, can be told the rest of something, or is over its time."""
        busy = [worker for worker in self._workers if worker.busy]
        poll = select.poll()
        for worker in busy:
            to_read, to_write = worker.descriptors()
            for descriptor in to_read:
                poll.register(descriptor, select.POLLIN | (select.POLLOUT if descriptor in to_write else 0))
        if busy:
            seconds = min(worker.deadline for worker in busy) - time.monotonic()
            poll.poll(max(0.0, seconds) * 1000 + 1)


def _kill_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()
    workers.clear()


@functools.cache
def _say_missing(limits: tuple[str, ...]) -> None:
    """Say once what this system cannot limit."""
    if limits:
        logging.getLogger(__name__).warning(
            "reward code has no limit of %s on this system", ", ".join(limits)
        )
