"""Results on their way, and the list of calls that tells what a run is doing now.

`LocalFuture` holds what already happened in this process; the one over Ray object references lives in
`launch.py`. Knows no role.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxflow.workers.protocol import CallRecord, RoleError


@dataclasses.dataclass(frozen=True)
class LocalFuture:
    """A value that is already here."""

    value: Any

    def result(self) -> Any:
        """Return the value."""
        return self.value


@dataclasses.dataclass(frozen=True)
class PendingCall:
    """A call that was made, and how to ask after it."""

    role: str
    method: str
    stage: str
    done: Callable[[], bool]  # whether it has ended; never waits
    record: Callable[[], CallRecord]  # waits for its end; raises what it raised


class CallList:
    """Calls in the order they were made, until their records are collected."""

    def __init__(self) -> None:
        self._pending: list[PendingCall] = []

    def add(self, call: PendingCall) -> None:
        """Note a call that was just made."""
        self._pending.append(call)

    def current_stage(self) -> str | None:
        """Return the stage of the first call that has not ended; None if all have. Safe from any thread."""
        return next((call.stage for call in tuple(self._pending) if not call.done()), None)

    def any_succeeded(self, method: str) -> bool:
        """Return whether a pending call of this method ended without an exception; waits for those calls."""
        return any(_succeeded(call) for call in self._pending if call.method == method)

    def forget(self) -> None:
        """Drop all calls: after a failure their records only tell of it again."""
        self._pending = []

    def collect(self) -> list[CallRecord]:
        """Wait for all calls and return their records, in order; the list is empty then."""
        pending, self._pending = self._pending, []
        return [call.record() for call in pending]


def _succeeded(call: PendingCall) -> bool:
    try:
        call.record()
    except RoleError:
        return False
    return True
