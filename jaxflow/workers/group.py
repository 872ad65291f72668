"""A role as the controller holds it: its exposed methods, each returning a future at once.

Knows no transport: it is given a way to call.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

from jaxflow.types import Future
from jaxflow.workers.host import ROLES
from jaxflow.workers.protocol import exposed_methods


class Transport(Protocol):
    """How a call reaches the processes of a pool."""

    def call(self, role: str, method: str, stage: str, arguments: tuple[Any, ...]) -> Future:
        """Start a call; futures among the arguments start it when they are ready."""
        ...

    def place(self, role: str) -> None:
        """Build a role in the pool's processes and wait for it."""
        ...

    def remove(self, role: str) -> None:
        """Let a role of the pool's processes go."""
        ...


class WorkerGroup:
    """The handle of one role: `group.method(...)` for each method the role exposes."""

    def __init__(self, role: str, transport: Transport):
        self.role = role
        self._transport = transport
        transport.place(role)
        for name, method in exposed_methods(ROLES[role]).items():
            self.__dict__[name] = functools.partial(self._call, name, method.stage)

    def _call(self, method: str, stage: str, *arguments: Any) -> Future:
        return self._transport.call(self.role, method, stage, arguments)

    def release(self) -> None:
        """Let the role and its arrays go; the handle is dead then."""
        self._transport.remove(self.role)
