"""Reads what a compiled program does: which collectives, between whom, how many bytes; how much memory it takes.

Knows XLA's text and figures alone: no weight, no layout.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jax.stages import Compiled

_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices."""

    kind: str  # as XLA calls it
    shapes: tuple[tuple[int, ...], ...]  # of its results on one device
    result_bytes: int  # of these together, in the type that travels
    groups: tuple[tuple[int, ...], ...]  # of positions in the mesh, row-major; (from, to) in a permutation

    @property
    def elements(self) -> int:
        """Count the elements of its results on one device."""
        return sum(map(math.prod, self.shapes))

    @property
    def received_bytes(self) -> int:
        """Return the bytes that a device taking part receives at least: of g devices it is one itself."""
        peers, size = len(self.groups[0]) - 1, len(self.groups[0])
        match self.kind:
            case "all-gather" | "all-to-all":
                return self.result_bytes * peers // size
            case "all-reduce":
                return 2 * self.result_bytes * peers // size
            case "reduce-scatter":
                return self.result_bytes * peers
            case _:
                return self.result_bytes

    @property
    def receivers(self) -> tuple[int, ...]:
        """Return the positions that receive something."""
        if self.kind == "collective-permute":
            return tuple(to for start, to in self.groups if start != to)
        return tuple(position for group in self.groups if len(group) > 1 for position in group)


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """Bytes on each device while one compiled program runs."""

    arguments: int
    results: int
    temporaries: int
    aliased: int  # of the results, in donated arguments

    @property
    def peak(self) -> int:
        """Return what must be free, arguments included; an upper bound where temporaries live at other times."""
        return self.arguments + self.results + self.temporaries - self.aliased


def memory_of(program: Compiled) -> ProgramMemory:
    """Return the compiler's own figures."""
    figures = program.memory_analysis()
    # Its `peak_memory_in_bytes` leaves temporaries out on CPU.
    return ProgramMemory(
        figures.argument_size_in_bytes,
        figures.output_size_in_bytes,
        figures.temp_size_in_bytes,
        figures.alias_size_in_bytes,
    )


def received_by_position(collectives: Iterable[Collective], positions: int) -> list[int]:
    """Return the bytes that each position of the mesh receives from all of them."""
    received = [0] * positions
    for collective in collectives:
        for position in collective.receivers:
            received[position] += collective.received_bytes
    return received


def collectives_of(text: str) -> tuple[Collective, ...]:
    """List every collective in a piece of optimised HLO, once each wherever it stands."""
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(", line)
        if match is not None:
            result, kind, started = match.groups()
            shapes = _result_shapes(_typed_shapes(result), kind, started is not None)
            found.append(
                Collective(
                    kind,
                    tuple(dims for _, dims in shapes),
                    sum(_bytes(*one) for one in shapes),
                    groups_of(line),
                )
            )
    return tuple(found)


def _typed_shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    found = re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", text)
    return [(kind, _integers(dims) if dims != "" else ()) for kind, dims in found]


def _result_shapes(shapes: list, kind: str, started: bool) -> list:
    """Leave the operands out: of the asynchronous forms, some have the type (operands, results, counters)."""
    if started and kind == "all-gather":
        return shapes[len(shapes) // 2 :]
    if started and kind == "collective-permute":
        return shapes[1:2]
    return shapes


def _bytes(kind: str, dims: tuple[int, ...]) -> int:
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
    return math.ceil(bits * math.prod(dims) / 8)


def groups_of(line: str) -> tuple[tuple[int, ...], ...]:
    """Read the device groups of a collective in any of the three notations that XLA prints."""
    if "source_target_pairs" in line:
        pairs = re.search(r"source_target_pairs=\{([\d,{}]*)\}", line)
        return tuple((int(start), int(to)) for start, to in re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
    listed = re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", line)
    if listed is not None:
        return tuple(_integers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota is not None:
        return _as_groups(_iota(_integers(iota[2]), iota[3]).reshape(_integers(iota[1])))
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}",
        line,
    )
    if mesh is None:
        raise ValueError(f"device groups in a notation that is not known: {line.strip()}")
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    count = (math.prod(axes.values()),)
    devices = _iota(_integers(mesh[2]) if mesh[2] is not None else count, mesh[3])
    named = [list(axes).index(name) for name in re.findall(r"'([^']+)'", mesh[4])]
    others = [axis for axis in range(len(axes)) if axis not in named]
    size = math.prod(list(axes.values())[axis] for axis in named)
    return _as_groups(devices.reshape(tuple(axes.values())).transpose(*others, *named).reshape(-1, size))


def _as_groups(grid: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(group) for group in grid.tolist())


def _iota(shape: Sequence[int], permutation: str | None) -> np.ndarray:
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose(_integers(permutation)) if permutation is not None else devices


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
