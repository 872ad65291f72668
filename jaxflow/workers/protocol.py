"""What of a role can be called from the controller, and what a call leaves behind.

Knows no transport and does not import Ray.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import types
from collections.abc import Callable
from typing import TypeVar

from jaxflow.types import Span, UserError
from jaxflow.workers.transfer import TransferProtocol

Method = TypeVar("Method", bound=Callable)


@dataclasses.dataclass(frozen=True)
class Exposed:
    """A method of a role that the controller may call."""

    function: Callable  # unbound
    stage: str  # its name in `timing_s/*`
    protocol: TransferProtocol
    replicated: bool  # every process returns the same value, of which one is taken
    by_parts: bool  # each row's result depends on that row alone: rows may go through in several calls


_EXPOSED: dict[Callable, Exposed] = {}


def exposed(
    stage: str, protocol: TransferProtocol, replicated: bool = False, by_parts: bool = False
) -> Callable[[Method], Method]:
    """Mark a role's method as callable from the controller under a transfer protocol.

    Args:
        stage: its name in `timing_s/*` and in the timeline.
        protocol: how rows reach the group's processes and how results are collected.
        replicated: every process returns the same value; the first one's is the result. For metrics.
        by_parts: no row's result depends on another row, so that the call may be made in `rollout.parts` calls
            and whoever waits for its first rows can begin.
    """

    def mark(method: Method) -> Method:
        _EXPOSED[method] = Exposed(method, stage, protocol, replicated, by_parts)
        return method

    return mark


@functools.cache
def exposed_methods(role: type) -> dict[str, Exposed]:
    """Return the exposed methods of a role class by name, inherited ones included."""
    methods = {}
    for cls in reversed(role.__mro__):
        for name, member in vars(cls).items():
            if isinstance(member, types.FunctionType) and member in _EXPOSED:
                methods[name] = _EXPOSED[member]
    return methods


@dataclasses.dataclass(frozen=True)
class CallRecord:
    """One process's part of one finished call, as it saw it."""

    span: Span  # bytes: arguments that it was sent and results that it gave
    inner: tuple[Span, ...]  # what happened inside


def merged(records: list[CallRecord]) -> list[Span]:
    """Make one span of the parts of a call: from the first start to the last end, bytes and tokens of all.

    What happened inside follows; its bytes are those of the process that moved most.
    """
    spans = [_one([record.span for record in records], sum(record.span.bytes for record in records))]
    for same in zip(*(record.inner for record in records), strict=False):
        spans.append(_one(list(same), max(span.bytes for span in same)))
    return spans


def _one(spans: list[Span], moved: int) -> Span:
    started = min(span.started for span in spans)
    ended = max(span.started + span.seconds for span in spans)
    tokens = sum(span.tokens for span in spans)
    return dataclasses.replace(spans[0], started=started, seconds=ended - started, bytes=moved, tokens=tokens)


class RoleError(Exception):
    """An exception inside a role, with where it happened. Survives the way between processes as plain text."""

    def __init__(self, role: str, method: str, process: str, message: str, trace: str):
        super().__init__(role, method, process, message, trace)
        self.role, self.method, self.process = role, method, process
        self.message, self.trace = message, trace

    def __str__(self) -> str:
        return f"{self.role}.{self.method} failed in {self.process}: {self.message}"


class RoleRefusal(RoleError, UserError):
    """A `UserError` inside a role: its message is for the user, its trace is not."""

    def __str__(self) -> str:
        return self.message


class WorkerLost(RoleError):
    """A process that ended, gives no sign of life, or is over its time: its group is lost with it."""


class InputLost(WorkerLost):
    """A call that cannot run because a process that was to make its input is lost: not the place to blame."""


def now() -> float:
    """Return the time that records of different processes share."""
    return time.time()
