"""Results on their way, and the list of calls that tells what a run is doing now.

Knows pieces of results by handle; what a handle is (a value, a Ray object reference) its transport knows.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxflow.types import Span
from jaxflow.workers.protocol import CallRecord, RoleError, merged
from jaxflow.workers.row_values import join_rows

Fetch = Callable[[Sequence[Any]], list[Any]]
"""Waits for the values behind handles and brings them here; raises what their calls raised."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a batch, somewhere."""

    start: int
    stop: int
    handle: Any


@dataclasses.dataclass(frozen=True)
class RowsFuture:
    """A batch in pieces, in row order: made by one or several processes, in one or several calls."""

    pieces: tuple[Piece, ...]
    calls: tuple[PendingCall, ...]  # that make it; none where the controller put it there
    fetch: Fetch

    @property
    def rows(self) -> int:
        """Count the rows."""
        return self.pieces[-1].stop

    def result(self) -> Any:
        """Wait for all rows and bring them here."""
        return join_rows(self.fetch([piece.handle for piece in self.pieces]))


@dataclasses.dataclass(frozen=True)
class ValuesFuture:
    """A value of each of some processes; a single one where all have the same."""

    handles: tuple[Any, ...]
    replicated: bool
    calls: tuple[PendingCall, ...]
    fetch: Fetch

    def result(self) -> Any:
        """Wait for the value and bring it here; without `replicated`, a tuple with one of each process."""
        values = self.fetch(self.handles)
        return values[0] if self.replicated else tuple(values)


@dataclasses.dataclass(eq=False)
class PendingCall:
    """A call that was made: on which pool, after which others, and how to ask after it."""

    pool: str
    role: str
    method: str
    stage: str
    inputs: tuple[PendingCall, ...]
    records: tuple[Any, ...]  # handle of each process's CallRecord, in the order of the processes
    running_since: float | None = None  # when the watch first saw it run
    finished: tuple[CallRecord, ...] | None = None


class CallList:
    """Calls in the order they were made, until their records are collected. Safe to read from any thread."""

    def __init__(self) -> None:
        self._pending: collections.deque[PendingCall] = collections.deque()

    def add(self, call: PendingCall) -> None:
        """Note a call that was just made."""
        self._pending.append(call)

    @property
    def unfinished(self) -> list[PendingCall]:
        """Return the calls not seen to have ended, in order."""
        return [call for call in tuple(self._pending) if call.finished is None]

    def running(self) -> list[PendingCall]:
        """Return, of each pool, the call whose turn it is, where what it waits for is there."""
        first: dict[str, PendingCall] = {}
        for call in self.unfinished:
            first.setdefault(call.pool, call)
        return [call for call in first.values() if all(made.finished is not None for made in call.inputs)]

    def current_stage(self) -> str | None:
        """Return the stage of the first call that runs; None if none does."""
        return next((call.stage for call in self.running()), None)

    def any_succeeded(self, method: str, fetch: Fetch) -> bool:
        """Return whether a pending call of this method ended without an exception; waits for those calls."""
        return any(_succeeded(call, fetch) for call in tuple(self._pending) if call.method == method)

    def forget(self) -> None:
        """Drop all calls: after a failure their records only tell of it again."""
        self._pending.clear()

    def collect(self, fetch: Fetch) -> list[list[Span]]:
        """Wait for all calls; return each one's span and those inside it, in order. The list is empty then."""
        pending = tuple(self._pending)
        handles = [handle for call in pending if call.finished is None for handle in call.records]
        arrived = iter(fetch(handles))
        for call in pending:
            if call.finished is None:
                call.finished = tuple(next(arrived) for _ in call.records)
        self._pending.clear()
        return [merged(list(call.finished)) for call in pending if call.finished is not None]


def _succeeded(call: PendingCall, fetch: Fetch) -> bool:
    try:
        fetch(call.records)
    except RoleError:
        return False
    return True
