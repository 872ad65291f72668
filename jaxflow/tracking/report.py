"""The end summary of a run: what was done, what it reached, where the time went.

Knows only the rows of metrics.jsonl, the spans of a few steps and the folder of the run.
"""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxflow.tracking.metrics import GLOBAL_STEP
from jaxflow.tracking.text import duration, figure, stage_words
from jaxflow.tracking.timeline import gantt, wall_seconds
from jaxflow.types import Span

_BLOCKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_CURVE_COLUMNS = 40
_HELD_OUT = tuple(f"val-core/{loss}/accuracy" for loss in ("reward_model", "cost_model", "dpo", "kto"))
_ACCURACY = re.compile(r"val-core/(.+)/acc/mean@\d+")
_BAR_COLUMNS = 24
_GANTT_COLUMNS = 72


def summary(
    rows: Sequence[Mapping[str, float]],
    started: float,
    ended: float,
    workdir: Path,
    checkpoint_steps: Sequence[int],
    spans_by_step: Mapping[int, Sequence[Span]],
) -> list[str]:
    """Writes the lines shown at the end of a run.

    Args:
        rows: metrics.jsonl, as `read_metrics` returns it; of the whole run, resumed parts included.
        started: when this process started the run or took it up, seconds.
        ended: now, seconds of the same clock.
        workdir: the run's folder.
        checkpoint_steps: steps whose checkpoints are kept.
        spans_by_step: what the pools did in some steps; the one of median wall time is drawn.
    """
    steps = [row for row in rows if "timing_s/step" in row]
    lines = _totals(steps, ended - started)
    lines += _validation(rows)
    lines += _stage_times(steps)
    lines += _typical_step(spans_by_step)
    kept = ", ".join(f"step {step}" for step in checkpoint_steps)
    lines.append(f"checkpoints   {kept if kept else 'none'}")
    lines += _files(workdir)
    return lines


def sparkline(values: Sequence[float], columns: int) -> str:
    """Draws values as blocks of eight heights between their least and greatest; no number is a blank.

    More than `columns` values are thinned evenly, the first and the last kept.
    """
    if len(values) > columns:
        values = [values[round(i * (len(values) - 1) / (columns - 1))] for i in range(columns)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, high = min(finite), max(finite)

    def block(value: float) -> str:
        if not math.isfinite(value):
            return " "
        height = 0.5 if high == low else (value - low) / (high - low)
        return _BLOCKS[round(height * (len(_BLOCKS) - 1))]

    return "".join(map(block, values))


def bar(fraction: float, columns: int) -> str:
    """Draws a fraction of `columns` columns, to an eighth of a column."""
    eighths = round(min(max(fraction, 0.0), 1.0) * columns * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _totals(steps: Sequence[Mapping[str, float]], wall_seconds: float) -> list[str]:
    lines = [f"wall time     {duration(wall_seconds)} since this start"]
    if not steps:
        return ["steps         none", *lines]
    seconds = sum(row["timing_s/step"] for row in steps)
    tokens = sum(row["perf/total_num_tokens"] for row in steps)
    # Weighted by time: total tokens / total seconds / devices.
    throughput = sum(row["perf/throughput"] * row["timing_s/step"] for row in steps) / seconds
    first, last = steps[0][GLOBAL_STEP], steps[-1][GLOBAL_STEP]
    return [
        f"steps         {len(steps)} ({first} to {last}), {duration(seconds)}",
        *lines,
        f"tokens        {tokens:,.0f}, {figure(throughput)} per second and device",
    ]


def _validation(rows: Sequence[Mapping[str, float]]) -> list[str]:
    names = sorted({name for row in rows for name in row if _ACCURACY.fullmatch(name)})
    if len(names) == 2:  # a single data source says the same as all rows
        names = [name for name in names if name.startswith("val-core/all/")]
    # Beside answers, what an algorithm says of rows held out.
    names += sorted({name for row in rows for name in row if name.startswith(_HELD_OUT)})
    lines = []
    for name in names:
        curve = [(row[GLOBAL_STEP], row[name]) for row in rows if name in row]
        values = [value for _, value in curve]
        best_step, best = max(curve, key=lambda point: -math.inf if math.isnan(point[1]) else point[1])
        found = _ACCURACY.fullmatch(name)
        source = name.removeprefix("val-core/").removesuffix("/accuracy") if found is None else found[1]
        lines.append(
            f"accuracy      {source}: first {values[0]:.3f} → best {best:.3f} (step {best_step}) "
            f"→ last {values[-1]:.3f}  {sparkline(values, _CURVE_COLUMNS)}"
        )
    return lines


def _stage_times(steps: Sequence[Mapping[str, float]]) -> list[str]:
    totals: dict[str, float] = {}
    for row in steps:
        for name, value in row.items():
            if name.startswith("timing_s/"):
                stage = name.removeprefix("timing_s/")
                totals[stage] = totals.get(stage, 0.0) + value
    if not totals:
        return []
    in_steps = totals.pop("step")
    named = sum(totals.values())
    # Validation and saves may be timed outside the step; overlapping stages add up to more than it.
    whole = max(in_steps, named)
    totals["other"] = whole - named
    width = max(len(stage_words(stage)) for stage in totals)
    lines = ["time went to"]
    for stage, seconds in sorted(totals.items(), key=lambda item: -item[1]):
        share = seconds / whole
        drawn = bar(share, _BAR_COLUMNS)
        lines.append(f"  {stage_words(stage):<{width}}  {share:>6.1%}  {duration(seconds):>11}  {drawn}")
    return lines


def _typical_step(spans_by_step: Mapping[int, Sequence[Span]]) -> list[str]:
    """Draws the step of median wall time; the earliest counts only where it is the only one, as it compiles."""
    seconds = {step: wall_seconds(spans) for step, spans in sorted(spans_by_step.items()) if spans}
    if not seconds:
        return []
    candidates = list(seconds)[1:] if len(seconds) > 1 else list(seconds)
    median = statistics.median_low([seconds[step] for step in candidates])
    step = next(step for step in candidates if seconds[step] == median)
    return [f"pools in step {step}, a typical one", *gantt(spans_by_step[step], _GANTT_COLUMNS)]


def _files(workdir: Path) -> list[str]:
    lines = [f"files in {workdir}"]
    for path in sorted(workdir.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        lines.append(f"  {name:<22} {_size(path) / 1e6:,.2f} MB")
    return lines


def _size(path: Path) -> int:
    """Sums the bytes of a file or folder; what another thread removes meanwhile counts nothing."""
    if not path.is_dir():
        return _bytes_of(path)
    return sum(_bytes_of(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _bytes_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
