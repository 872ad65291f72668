"""Calls that run here and now, in the controller's process: to debug any placement. Knows no role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxflow.workers.calls import CallHeader
from jaxflow.workers.host import Host
from jaxflow.workers.protocol import RoleError
from jaxflow.workers.resource_pool import ResourcePool


class InProcess:
    """One pool whose only process is this one; handles are the values themselves."""

    def __init__(self, pool: ResourcePool, host: Host):
        self.pool, self.grid = pool.name, pool.grid
        self._host = host

    def place(self, role: str) -> None:
        """Build a role in this process."""
        self._host.place(role)

    def remove(self, role: str) -> None:
        """Let a role go."""
        self._host.remove(role)

    def submit(self, process: int, header: CallHeader, handles: Sequence[Any]) -> tuple[list[Any], Any]:
        """Run the call; a failure is raised when its results are asked for, as everywhere."""
        failed = next((handle for handle in handles if isinstance(handle, RoleError)), None)
        if failed is not None:
            return [failed] * header.output_count, failed
        try:
            result = self._host.call(header, *handles)
        except RoleError as error:
            return [error] * header.output_count, error
        if header.output_count == 0:
            return [], result
        return list(result[:-1]), result[-1]


def fetch(handles: Sequence[Any]) -> list[Any]:
    """Return the values; raise the first failure among them."""
    for handle in handles:
        if isinstance(handle, RoleError):
            raise handle
    return list(handles)


def settle(handles: Sequence[Any], seconds: float) -> bool:
    """Every call has ended when it has been made."""
    return True


def store(value: Any) -> Any:
    """A value is its own handle."""
    return value
