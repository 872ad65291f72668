"""One call of a group, worked out per process: which rows it gets, which rows of the result it gives.

Pure arithmetic on row ranges and handles. Knows no transport and never sees the data.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from jaxflow.workers.future import RowsFuture, ValuesFuture
from jaxflow.workers.protocol import Exposed
from jaxflow.workers.transfer import Grid, PerProcess, Ranges, RowsOf


@dataclasses.dataclass(frozen=True)
class Plain:
    """An argument sent as it is."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Given:
    """An argument that is the value behind the next handle."""


@dataclasses.dataclass(frozen=True)
class Joined:
    """An argument made of the values behind the next handles: these rows of each, joined."""

    rows: tuple[range, ...]  # one per handle, counted from the handle's first row


@dataclasses.dataclass(frozen=True)
class CallHeader:
    """All that a process needs to know of its part of a call beside the data."""

    role: str
    method: str
    arguments: tuple[Plain | Given | Joined, ...]
    outputs: tuple[range, ...] | None  # local rows of the result, each run apart; None: the whole value
    own: tuple[range, ...]  # local rows that no process before this one has: those whose tokens it counts

    @property
    def output_count(self) -> int:
        """Count the values returned beside the record."""
        return 1 if self.outputs is None else len(self.outputs)


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's part of a call, in rows of the batch."""

    given: Ranges  # it gets these
    own: Ranges  # it is the first to have these
    pieces: Ranges  # it returns these, each apart; none where the result is not rows

    def local(self, rows: range) -> range:
        """Return where rows of the batch lie among those given."""
        before = 0
        for run in self.given:
            if run.start <= rows.start and rows.stop <= run.stop:
                start = before + rows.start - run.start
                return range(start, start + len(rows))
            before += len(run)
        raise ValueError(f"rows {rows} are collected from a process that is given {self.given}")


@dataclasses.dataclass(frozen=True)
class CallPlan:
    """A call of some rows, as every process of the group takes part in it."""

    shares: tuple[Share, ...]  # one per process
    returns_rows: bool  # the result is a batch
    givers: tuple[int, ...]  # where it is none: the processes whose values it is


def plan_call(method: Exposed, grid: Grid, part: range, cuts: Sequence[int]) -> CallPlan:
    """Work out who gets and gives which rows of `part`; `cuts` are the rows of the batch where pieces end."""
    given = [_shifted(ranges, part.start) for ranges in method.protocol.distribute(grid, len(part))]
    collected = method.protocol.collect(grid, len(part))
    if not isinstance(collected, RowsOf):
        givers = collected.processes[:1] if method.replicated else collected.processes
        first = collected.processes[0]
        shares = tuple(Share(ranges, ranges if i == first else (), ()) for i, ranges in enumerate(given))
        return CallPlan(shares, False, givers)
    own = [_shifted(ranges, part.start) for ranges in collected.shares]
    pieces = [() if method.replicated else _cut(ranges, cuts) for ranges in own]
    shares = tuple(Share(*share) for share in zip(given, own, pieces, strict=True))
    return CallPlan(shares, not method.replicated, (0,))


def arguments_of(
    arguments: Sequence[Any], share: Share, process: int
) -> tuple[tuple[Plain | Given | Joined, ...], list[Any]]:
    """Turn a call's arguments into one process's: how each is made, and the handles it is made of."""
    sent: list[Plain | Given | Joined] = []
    handles: list[Any] = []
    for argument in arguments:
        if isinstance(argument, RowsFuture):
            rows, used = _overlap(argument, share.given)
            sent.append(Joined(rows))
            handles += used
        elif isinstance(argument, ValuesFuture):
            sent.append(Given())
            handles.append(argument.handles[0 if argument.replicated else process])
        elif isinstance(argument, PerProcess):
            sent.append(Plain(argument.values[process]))
        else:
            sent.append(Plain(argument))
    return tuple(sent), handles


def _overlap(batch: RowsFuture, wanted: Ranges) -> tuple[tuple[range, ...], list[Any]]:
    rows, handles = [], []
    for run in wanted:
        first = bisect.bisect_right(batch.pieces, run.start, key=lambda piece: piece.stop)
        for piece in itertools.islice(batch.pieces, first, None):
            if piece.start >= run.stop:
                break
            start, stop = max(run.start, piece.start), min(run.stop, piece.stop)
            if start < stop:
                rows.append(range(start - piece.start, stop - piece.start))
                handles.append(piece.handle)
    if not rows:  # a process without rows still takes part in its group's programs: it gets none of some
        return (range(0),), [batch.pieces[0].handle]
    return tuple(rows), handles


def _shifted(ranges: Ranges, offset: int) -> Ranges:
    return tuple(range(run.start + offset, run.stop + offset) for run in ranges)


def _cut(ranges: Ranges, cuts: Sequence[int]) -> Ranges:
    pieces = []
    for run in ranges:
        inside = cuts[bisect.bisect_right(cuts, run.start) : bisect.bisect_left(cuts, run.stop)]
        edges = [run.start, *inside, run.stop]
        pieces += [range(start, stop) for start, stop in itertools.pairwise(edges)]
    return tuple(pieces)
