"""A role as the controller holds it: its exposed methods, each returning a future at once.

Handles handles of data, never the data. Knows no transport: it is given a way to submit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jaxflow.workers.calls import CallHeader, CallPlan, arguments_of, plan_call
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
    cuts: Callable[[int], Sequence[int]]  # rows of a batch -> where its pieces end, whoever asks for some
    parts: int  # calls that a batch goes through, where a method allows it
    traffic: Traffic


class WorkerGroup:
    """The handle of one role: `group.method(...)` for each method the role exposes."""

    def __init__(self, role: str, role_class: type, transport: Transport, exchange: Exchange):
        self.role = role
        self._transport, self._exchange = transport, exchange
        self.methods = exposed_methods(role_class)
        self._plans: dict[tuple[str, int], list[CallPlan]] = {}
        transport.place(role)
        for name, method in self.methods.items():
            self.__dict__[name] = functools.partial(self._call, name, method)

    @property
    def processes(self) -> int:
        """Count the processes of the role's pool."""
        return self._transport.grid.processes

    def release(self) -> None:
        """Let the role and its arrays go; the handle is dead then."""
        self._transport.remove(self.role)

    def _call(self, name: str, method: Exposed, *arguments: Any) -> RowsFuture | ValuesFuture:
        given = tuple(self._exchange.put(a) if is_rows(a) and not _is_held(a) else a for a in arguments)
        sizes = {argument.rows for argument in given if isinstance(argument, RowsFuture)}
        if len(sizes) > 1:
            raise ValueError(f"{self.role}.{name} was given batches of {sorted(sizes)} rows; they must agree")
        rows = max(sizes, default=0)
        plans = self._plans_of(name, method, rows)
        made = [self._submit(name, method, given, plan) for plan in plans]
        calls = tuple(call for call, _, _ in made)
        if plans[0].returns_rows:
            pieces = sorted((p for _, pieces, _ in made for p in pieces), key=lambda piece: piece.start)
            return RowsFuture(tuple(pieces), calls, self._exchange.fetch)
        return ValuesFuture(made[0][2], method.replicated, calls, self._exchange.fetch)

    def _plans_of(self, name: str, method: Exposed, rows: int) -> list[CallPlan]:
        """Return the plan of each part that a call of so many rows goes through in; the same at every step."""
        if (name, rows) not in self._plans:
            count = max(1, min(self._exchange.parts, rows)) if method.by_parts else 1
            edges = [rows * part // count for part in range(count + 1)]
            self._plans[name, rows] = [
                plan_call(method, self._transport.grid, range(start, stop), self._exchange.cuts(rows))
                for start, stop in itertools.pairwise(edges)
            ]
        return self._plans[name, rows]

    def _submit(
        self, name: str, method: Exposed, arguments: tuple[Any, ...], plan: CallPlan
    ) -> tuple[PendingCall, list[Piece], tuple[Any, ...]]:
        """Call every process with its rows; return the call, the pieces or the values it makes."""
        exchange, pieces, values, records = self._exchange, [], [], []
        for process, share in enumerate(plan.shares):
            sent, handles = arguments_of(arguments, share, process)
            header = CallHeader(
                role=self.role,
                method=name,
                arguments=sent,
                outputs=tuple(map(share.local, share.pieces)) if plan.returns_rows else None,
                own=tuple(map(share.local, share.own)),
            )
            exchange.traffic.sent += byte_count(header)
            results, record = self._transport.submit(process, header, handles)
            records.append(record)
            values.append(results)
            if plan.returns_rows:
                made = zip(share.pieces, results, strict=True)
                pieces += [Piece(run.start, run.stop, handle) for run, handle in made]
        inputs = tuple(c for a in arguments if isinstance(a, RowsFuture | ValuesFuture) for c in a.calls)
        call = PendingCall(self._transport.pool, self.role, name, method.stage, inputs, tuple(records))
        exchange.calls.add(call)
        given = () if plan.returns_rows else tuple(values[process][0] for process in plan.givers)
        return call, pieces, given


def _is_held(argument: Any) -> bool:
    return isinstance(argument, RowsFuture | ValuesFuture | PerProcess)
