"""A role as the controller holds it: its exposed methods, each returning a future at once.

Handles handles of data, never the data. Knows no transport: it is given a way to submit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jaxflow.workers.calls import CallHeader, arguments_of, returns_rows, shares_of, value_givers
from jaxflow.workers.future import CallList, Fetch, PendingCall, Piece, RowsFuture, ValuesFuture
from jaxflow.workers.protocol import Exposed, exposed_methods
from jaxflow.workers.row_values import byte_count, is_rows
from jaxflow.workers.transfer import Grid, PerProcess


class Transport(Protocol):
    """How calls reach the processes of one pool."""

    pool: str
    grid: Grid

    def submit(self, process: int, header: CallHeader, handles: Sequence[Any]) -> tuple[list[Any], Any]:
        """Start one process's part of a call; return the handles of its results and of its record."""
        ...

    def place(self, role: str) -> None:
        """Build a role in all processes of the pool and wait for it."""
        ...

    def remove(self, role: str) -> None:
        """Let a role of the pool go."""
        ...


@dataclasses.dataclass
class Traffic:
    """Bytes of arrays, text and numbers that passed through the controller."""

    sent: int = 0
    received: int = 0

    def take(self) -> int:
        """Return what passed since the last time."""
        passed, self.sent, self.received = self.sent + self.received, 0, 0
        return passed


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What all groups of a run share."""

    calls: CallList
    fetch: Fetch
    put: Callable[[Any], RowsFuture]  # the controller's own rows into the store, in pieces
    cuts: Callable[
        [int], Sequence[int]
    ]  # rows of a batch -> where its pieces end, for all who may ask for rows
    parts: int  # calls that a batch goes through, where a method allows it
    traffic: Traffic


class WorkerGroup:
    """The handle of one role: `group.method(...)` for each method the role exposes."""

    def __init__(self, role: str, role_class: type, transport: Transport, exchange: Exchange):
        self.role = role
        self._transport, self._exchange = transport, exchange
        self.methods = exposed_methods(role_class)
        transport.place(role)
        for name, method in self.methods.items():
            self.__dict__[name] = functools.partial(self._call, name, method)

    def release(self) -> None:
        """Let the role and its arrays go; the handle is dead then."""
        self._transport.remove(self.role)

    def _call(self, name: str, method: Exposed, *arguments: Any) -> RowsFuture | ValuesFuture:
        given = tuple(self._exchange.put(a) if is_rows(a) and not _is_held(a) else a for a in arguments)
        sizes = {argument.rows for argument in given if isinstance(argument, RowsFuture)}
        if len(sizes) > 1:
            raise ValueError(f"{self.role}.{name} was given batches of {sorted(sizes)} rows; they must agree")
        rows = max(sizes, default=0)
        count = max(1, min(self._exchange.parts, rows)) if method.by_parts else 1
        edges = [rows * part // count for part in range(count + 1)]
        parts = [range(start, stop) for start, stop in itertools.pairwise(edges)]
        made = [self._submit(name, method, given, part, rows) for part in parts]
        calls = tuple(call for call, _, _ in made)
        if returns_rows(method, self._transport.grid):
            pieces = sorted((p for _, pieces, _ in made for p in pieces), key=lambda piece: piece.start)
            return RowsFuture(tuple(pieces), calls, self._exchange.fetch)
        handles = made[0][2]
        return ValuesFuture(
            handles[:1] if method.replicated else handles, method.replicated, calls, self._exchange.fetch
        )

    def _submit(
        self, name: str, method: Exposed, arguments: tuple[Any, ...], part: range, rows: int
    ) -> tuple[PendingCall, list[Piece], tuple[Any, ...]]:
        """Call every process with its rows of `part`; return the call, the pieces or the values it makes."""
        exchange = self._exchange
        shares = shares_of(method, self._transport.grid, part, exchange.cuts(rows))
        batch, givers = returns_rows(method, self._transport.grid), value_givers(method, self._transport.grid)
        pieces, values, records = [], [], []
        for process, share in enumerate(shares):
            sent, handles = arguments_of(arguments, share, process)
            header = CallHeader(
                role=self.role,
                method=name,
                arguments=sent,
                outputs=tuple(map(share.local, share.pieces)) if batch else None,
                own=tuple(map(share.local, share.own)),
            )
            exchange.traffic.sent += byte_count(header)
            results, record = self._transport.submit(process, header, handles)
            records.append(record)
            if batch:
                made = zip(share.pieces, results, strict=True)
                pieces += [Piece(run.start, run.stop, handle) for run, handle in made]
            elif process in givers:
                values.append(results[0])
        inputs = tuple(
            call for a in arguments if isinstance(a, RowsFuture | ValuesFuture) for call in a.calls
        )
        call = PendingCall(self._transport.pool, self.role, name, method.stage, inputs, tuple(records))
        exchange.calls.add(call)
        return call, pieces, tuple(values)


def _is_held(argument: Any) -> bool:
    return isinstance(argument, RowsFuture | ValuesFuture | PerProcess)
