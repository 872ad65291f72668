"""What the compiler says of a plan's programs, beside the formulas, as text. Knows no plan and compiles nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxflow.engine.compiled import ProgramMemory
from jaxflow.placement import readable_bytes


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program beside what the formulas say of it. Bytes and FLOPs are of one device."""

    pool: str
    role: str
    name: str
    memory: ProgramMemory
    formula_bytes: float  # of what `compared` names
    compiled_bytes: float
    compared: str
    flops: float  # 0 where it computes nothing
    formula_flops: float
    seconds: float  # of tracing and compiling


_TARGETS = {
    "cpu": "compiled for simulated CPU devices: arguments and results are those of any backend, temporaries are this"
    " one's (it widens bfloat16 and has no fused attention)",
    "gpu": "compiled for the real GPU without one: its temporaries are of XLA's attention over whole"
    " sequences, not cuDNN's, and what the kernel for single tokens multiplies is not counted",
}


def describe_programs(programs: Sequence[Program], target: str) -> list[str]:
    """Return a line per program: XLA's bytes on each device, what the formulas say, FLOPs of both."""
    rows = [
        (
            "program",
            "arguments",
            "temporary",
            "peak",
            "compared",
            "XLA",
            "formula",
            "",
            "GFLOP",
            "formula",
            "s",
        )
    ]
    for one in programs:
        off = one.compiled_bytes / one.formula_bytes - 1 if one.formula_bytes > 0 else 0.0
        counted = (
            (f"{one.flops / 1e9:,.0f}", f"{one.formula_flops / 1e9:,.0f}") if one.flops > 0 else ("", "")
        )
        rows.append(
            (
                f"{one.pool}.{one.role}.{one.name}",
                readable_bytes(one.memory.arguments),
                readable_bytes(one.memory.temporaries),
                readable_bytes(one.memory.peak),
                one.compared,
                readable_bytes(int(one.compiled_bytes)),
                readable_bytes(int(one.formula_bytes)),
                f"{off:+.2%}",
                *counted,
                f"{one.seconds:.1f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [_TARGETS[target], *lines]
