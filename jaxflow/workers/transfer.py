"""Which rows of a batch go to which process of a pool, and whose results count: the transfer protocols.

A protocol is a pair of functions of the pool's grid and the number of rows (HybridFlow §4.1, Table 3); one's own
is another `TransferProtocol`. Handles row ranges alone: knows no array, no process and no Ray.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxflow.engine.rows import block

Ranges = tuple[range, ...]
"""Rows of a batch in ascending order, as runs."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A pool's devices in the order of its mesh, and how many of them each process owns."""

    axes: Mapping[str, int]  # mesh axis -> size, the major one first
    devices_per_process: int

    @property
    def processes(self) -> int:
        """Count the processes."""
        return math.prod(self.axes.values()) // self.devices_per_process

    def blocks(self, axes: tuple[str, ...]) -> int:
        """Count the blocks that rows are cut into over these axes; one that the mesh lacks has size 1."""
        return math.prod(self.axes.get(axis, 1) for axis in axes)

    def held(self, axes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Return, per process, the blocks that its devices hold when rows are cut over these axes."""
        indices = []
        for coordinates in itertools.product(*(range(size) for size in self.axes.values())):
            index = 0
            for axis, coordinate in zip(self.axes, coordinates, strict=True):
                index = index * self.axes[axis] + coordinate if axis in axes else index
            indices.append(index)
        per_process = self.devices_per_process
        runs = [indices[start : start + per_process] for start in range(0, len(indices), per_process)]
        return tuple(tuple(sorted(set(run))) for run in runs)


@dataclasses.dataclass(frozen=True)
class RowsOf:
    """The result is rows: which of them each process gives."""

    shares: tuple[Ranges, ...]  # per process; together every row once


@dataclasses.dataclass(frozen=True)
class ValuesOf:
    """The result is one value from each of these processes, in this order."""

    processes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TransferProtocol:
    """How the arguments of a call reach the processes of a group, and how their results become one."""

    name: str
    distribute: Callable[[Grid, int], tuple[Ranges, ...]]  # (grid, rows) -> the rows that each process gets
    collect: Callable[[Grid, int], RowsOf | ValuesOf]  # (grid, rows) -> whose results count


@dataclasses.dataclass(frozen=True)
class PerProcess:
    """An argument of which each process gets its own entry, whatever the protocol."""

    values: tuple[Any, ...]  # one per process


def split(*axes: str) -> Callable[[Grid, int], tuple[Ranges, ...]]:
    """Cut rows over mesh axes: a process gets the blocks its devices hold, so peers on other axes get the same."""

    def distribute(grid: Grid, rows: int) -> tuple[Ranges, ...]:
        used = _axes(grid, axes)
        count = grid.blocks(used)
        return tuple(_merged(rows, count, blocks) for blocks in grid.held(used))

    return distribute


def broadcast(grid: Grid, rows: int) -> tuple[Ranges, ...]:
    """Give every process all rows."""
    return ((range(rows),),) * grid.processes


def nothing(grid: Grid, rows: int) -> tuple[Ranges, ...]:
    """Give no process any rows: the caller says by `PerProcess` what each one gets."""
    return ((),) * grid.processes


def gather(*axes: str) -> Callable[[Grid, int], RowsOf]:
    """Take each block that rows are cut into over these axes once, from the first process that holds it."""

    def collect(grid: Grid, rows: int) -> RowsOf:
        used = _axes(grid, axes)
        count, taken, shares = grid.blocks(used), set[int](), []
        for blocks in grid.held(used):
            shares.append(_merged(rows, count, tuple(index for index in blocks if index not in taken)))
            taken.update(blocks)
        return RowsOf(tuple(shares))

    return collect


def from_all(grid: Grid, rows: int) -> ValuesOf:
    """Take every process's value."""
    return ValuesOf(tuple(range(grid.processes)))


def from_each_stage(grid: Grid, rows: int) -> ValuesOf:
    """Take the value of the first process of each pipeline stage."""
    first: dict[int, int] = {}
    for process, stages in enumerate(grid.held(("pipe", "micro_pipe"))):
        for stage in stages:
            first.setdefault(stage, process)
    return ValuesOf(tuple(first[stage] for stage in sorted(first)))


# The paper's six. Rows of training and scoring are cut over ('data', 'fsdp', 'expert'); generation frees the micro
# axes of tensor parallelism, and rows move there; without model parallelism every device is a rank of its own.
ONE_TO_ALL = TransferProtocol("ONE_TO_ALL", broadcast, from_all)
THREE_D_PROTO = TransferProtocol(
    "3D_PROTO", split("data", "fsdp", "expert"), gather("data", "fsdp", "expert")
)
THREE_D_ALL_MICRO_DP = TransferProtocol(
    "3D_ALL_MICRO_DP",
    split("data", "fsdp", "expert", "micro_pipe", "micro"),
    gather("data", "fsdp", "expert", "micro_pipe", "micro"),
)
THREE_D_PP_ONLY = TransferProtocol("3D_PP_ONLY", broadcast, from_each_stage)
DP_PROTO = TransferProtocol("DP_PROTO", split("*"), gather("*"))
ALL_TO_ALL = TransferProtocol("ALL_TO_ALL", nothing, from_all)
# Where rows change their place: every process sees all of them and gives its own ones of the result.
REARRANGING = TransferProtocol("REARRANGING", broadcast, gather("data", "fsdp", "expert"))


def cut_at(shares: tuple[Ranges, ...]) -> set[int]:
    """Return the rows at which these shares begin and end."""
    return {edge for ranges in shares for run in ranges for edge in (run.start, run.stop)}


def _axes(grid: Grid, axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(grid.axes) if axes == ("*",) else axes


def _merged(rows: int, count: int, blocks: tuple[int, ...]) -> Ranges:
    """Return the rows of these blocks, neighbours joined, empty blocks left out."""
    runs: list[range] = []
    for index in blocks:
        piece = block(rows, count, index)
        if piece.start >= piece.stop:
            continue
        if runs and runs[-1].stop == piece.start:
            runs[-1] = range(runs[-1].start, piece.stop)
        else:
            runs.append(range(piece.start, piece.stop))
    return tuple(runs)
