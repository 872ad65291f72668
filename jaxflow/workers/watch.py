"""Waiting with open eyes: who died, who hangs, who is over its time, while the controller waits for a result.

Knows pools and calls; knows no role and no dataflow. What is to be done about a loss is the run's business.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from jaxflow.workers.calls import CallHeader
from jaxflow.workers.future import CallList, PendingCall
from jaxflow.workers.in_ray import ENDED, InRay, bring
from jaxflow.workers.protocol import InputLost, RoleError, RoleRefusal, WorkerLost
from jaxflow.workers.transfer import Grid

_LOOK_SECONDS = 0.5  # between looks at everything, while what is waited for is not there
_PULSES_PER_TIMEOUT = 4  # signs of life asked for in the time after which a process counts as lost
_STACKS_SECONDS = 5.0  # that the processes have to say what they do
# A process that dies or fails takes its peers' collectives down with it, and they may complain first: a failure
# in a collective is believed only after its group had so long to show a better explanation.
_EXPLAIN_SECONDS = 2.0
_OF_COLLECTIVES = ("Gloo", "NCCL", "coordination service", "DEADLINE_EXCEEDED", "UNAVAILABLE")


class _Clock:
    """Seconds in which somebody looked: where the controller itself stood still, nobody else is to blame."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.monotonic()

    def advance(self) -> None:
        """Count the time since the last look, up to two regular ones."""
        now = time.monotonic()
        self.seconds += min(now - self._last, 2 * _LOOK_SECONDS)
        self._last = now


@dataclasses.dataclass
class _Pulse:
    """The sign of life last asked of one process."""

    due: float = 0.0  # when to ask for the next, on the watch's clock
    asked: float = 0.0
    answer: ray.ObjectRef | None = None  # while it is on its way


class Watch:
    """The eyes of one run over its pools."""

    def __init__(
        self,
        pools: Sequence[InRay],
        calls: CallList,
        heartbeat_timeout_seconds: float,
        stage_timeout_seconds: float,
        stacks_directory: Path,
    ):
        self._pools, self._calls = {pool.pool: pool for pool in pools}, calls
        self._heartbeat_timeout, self._stage_timeout = heartbeat_timeout_seconds, stage_timeout_seconds
        self._stacks_directory = stacks_directory
        self._clock = _Clock()
        self._pulses = {(pool.pool, i): _Pulse() for pool in pools for i in range(pool.grid.processes)}

    def fetch(self, handles: Sequence[Any]) -> list[Any]:
        """Wait for the values behind references and bring them here.

        Raises the failure that best explains why they will not come, wherever it happened: a role's exception,
        or WorkerLost for a process that ended, gave no sign of life or is over its stage's time.
        """
        references = list(handles)
        while references:
            _, missing = ray.wait(references, num_returns=len(references), timeout=_LOOK_SECONDS)
            if not missing:
                break
            self.look()
        try:
            return bring(references)
        except RoleRefusal:
            raise
        except RoleError as error:
            raise self._explained(error) from None

    def look(self) -> None:
        """Look at every call and every process once; raise the failure if there is one."""
        self._clock.advance()
        try:
            self._look_at_calls()
        except RoleRefusal:
            raise
        except RoleError as error:
            raise self._explained(error) from None
        self._look_at_deadlines(self._clock.seconds)
        self._look_at_pulses(self._clock.seconds)

    def _look_at_calls(self) -> None:
        unfinished = self._calls.unfinished
        records = [record for call in unfinished for record in call.records]
        if not records:
            return
        ready = set(ray.wait(records, num_returns=len(records), timeout=0)[0])
        for call in unfinished:
            arrived = bring([record for record in call.records if record in ready])
            if len(arrived) == len(call.records):
                call.finished = tuple(arrived)

    def _look_at_deadlines(self, now: float) -> None:
        for call in self._calls.running():
            if call.running_since is None:
                call.running_since = now
            elif now - call.running_since > self._stage_timeout:
                waiting = [i for i, record in enumerate(call.records) if not _is_ready(record)]
                if waiting:  # peers wait for the slow one inside a collective: which it is, the stacks show
                    self._lose(call, waiting, f"over its {self._stage_timeout:g} s")

    def _look_at_pulses(self, now: float) -> None:
        for (name, process), pulse in self._pulses.items():
            if pulse.answer is None:
                if now >= pulse.due:
                    pulse.asked, pulse.answer = now, self._pools[name].ping(process)
            elif _is_ready(pulse.answer):
                answer, pulse.answer = pulse.answer, None
                pulse.due = now + self._heartbeat_timeout / _PULSES_PER_TIMEOUT
                try:
                    bring([answer])
                except RoleError as error:
                    raise self._explained(error, name, self._first_ended(name, process)) from None
            elif now - pulse.asked > self._heartbeat_timeout:
                call = next((call for call in self._calls.running() if call.pool == name), None)
                what = f"no sign of life for {self._heartbeat_timeout:g} s (stopped, or its machine is gone)"
                self._lose(call or _idle(name), [process], what)

    def _first_ended(self, pool: str, process: int) -> int:
        """Return the process of an idle pool that ended first, given one that has."""
        for earlier in range(process):
            answer = self._pools[pool].ping(earlier)
            if ray.wait([answer], timeout=_EXPLAIN_SECONDS)[0]:
                try:
                    bring([answer])
                except RoleError:
                    return earlier
        return process

    def _lose(self, call: PendingCall, processes: Sequence[int], what: str) -> None:
        try:
            stacks = f"what all workers were doing is in {self._write_stacks()}"
        except OSError as error:
            stacks = f"what all workers were doing could not be written ({error})"
        message = f"{what} in stage {call.stage}; {stacks}"
        places = " and ".join(self._pools[call.pool].words(process) for process in processes)
        raise WorkerLost(call.role, call.method, places, message, message)

    def _write_stacks(self) -> Path:
        path = self._stacks_directory / f"stacks_{time.strftime('%Y%m%d-%H%M%S')}.txt"
        lines = []
        for pool in self._pools.values():
            for process, stacks in enumerate(pool.stacks(_STACKS_SECONDS)):
                lines.append(f"=== {pool.words(process)}\n")
                lines.append("no answer: stopped, or busy outside Python\n" if stacks is None else stacks)
        path.write_text("".join(lines))
        return path

    def _explained(self, error: RoleError, pool: str | None = None, process: int = 0) -> RoleError:
        """Return the failure that came first, told with role, process and stage.

        Of several processes that ended that is the lowest: process 0 of a world takes the others down within a
        moment, while the end of another one leaves the rest with an error.
        """
        deadline = time.monotonic() + _EXPLAIN_SECONDS
        while True:
            failures = next(
                (found for call in self._calls.unfinished if (found := list(_failures(call)))), []
            )
            for call, ended, found in failures:
                if isinstance(found, WorkerLost) and not isinstance(found, InputLost):
                    return self._ended(self._at_work(call.pool, ended), ended, found)
            for _, _, found in failures:
                if not isinstance(found, WorkerLost) and not _of_collective(found):
                    return found
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if failures:
            return failures[0][2]
        return self._ended(_idle(pool), process, error) if pool is not None else error

    def _at_work(self, pool: str, process: int) -> PendingCall:
        """Return the call that a process which ended was at: those behind it may be seen to fail before it is."""
        calls = [call for call in self._calls.unfinished if call.pool == pool]
        return next(call for call in calls if not _succeeded(call.records[process]))

    def _ended(self, call: PendingCall, process: int, error: RoleError) -> WorkerLost:
        words = self._pools[call.pool].words(process)
        return WorkerLost(call.role, call.method, words, f"{ENDED} in stage {call.stage}", error.trace)


@dataclasses.dataclass(frozen=True)
class WatchedPool:
    """A pool as the groups use it: its waiting is done with open eyes, and shows in the timeline."""

    transport: InRay
    calls: CallList
    watch: Watch

    @property
    def pool(self) -> str:
        """Return the pool's name."""
        return self.transport.pool

    @property
    def grid(self) -> Grid:
        """Return the pool's mesh and processes."""
        return self.transport.grid

    def submit(self, process: int, header: CallHeader, handles: Sequence[Any]) -> tuple[list[Any], Any]:
        """Send one process its part of a call and return at once."""
        return self.transport.submit(process, header, handles)

    def place(self, role: str) -> None:
        """Build a role in all processes and wait for it."""
        self._wait(role, "place", self.transport.place(role))

    def remove(self, role: str) -> None:
        """Let a role go."""
        self._wait(role, "remove", self.transport.remove(role))

    def _wait(self, role: str, method: str, records: list[ray.ObjectRef]) -> None:
        self.calls.add(PendingCall(self.pool, role, method, method, (), tuple(records)))
        self.watch.fetch(records)


def _failures(call: PendingCall) -> Iterator[tuple[PendingCall, int, RoleError]]:
    """Yield the processes in which a call is known to have failed."""
    for process, record in enumerate(call.records):
        if _is_ready(record):
            try:
                bring([record])
            except RoleError as error:
                yield call, process, error


def _is_ready(reference: ray.ObjectRef) -> bool:
    return len(ray.wait([reference], timeout=0)[0]) == 1


def _succeeded(record: ray.ObjectRef) -> bool:
    try:
        return _is_ready(record) and len(bring([record])) == 1
    except RoleError:
        return False


def _of_collective(error: RoleError) -> bool:
    """Return whether a failure only tells that a peer is gone."""
    return any(word in error.message for word in _OF_COLLECTIVES)


def _idle(pool: str) -> PendingCall:
    return PendingCall(pool, "pool", "wait", "idle", (), ())
