"""What of a role can be called from the controller. Knows no transport and does not import Ray."""

from __future__ import annotations

import dataclasses
import functools
import time
import types
from collections.abc import Callable
from typing import TypeVar

from jaxflow.types import UserError

Method = TypeVar("Method", bound=Callable)

_STAGES: dict[Callable, str] = {}


def exposed(stage: str) -> Callable[[Method], Method]:
    """Mark a role's method as callable from the controller; `stage` is its name in `timing_s/*`."""

    def mark(method: Method) -> Method:
        _STAGES[method] = stage
        return method

    return mark


@dataclasses.dataclass(frozen=True)
class Exposed:
    """A method of a role that the controller may call."""

    function: Callable  # unbound
    stage: str


@functools.cache
def exposed_methods(role: type) -> dict[str, Exposed]:
    """Return the exposed methods of a role class by name, inherited ones included."""
    methods = {}
    for cls in reversed(role.__mro__):
        for name, member in vars(cls).items():
            if isinstance(member, types.FunctionType) and member in _STAGES:
                methods[name] = Exposed(member, _STAGES[member])
    return methods


@dataclasses.dataclass(frozen=True)
class CallRecord:
    """One finished call, as its worker saw it."""

    role: str
    method: str
    stage: str
    started: float  # seconds since the epoch
    seconds: float


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


def now() -> float:
    """Return the time that records of different processes share."""
    return time.time()
