"""What the pools did and when: timeline.json for trace viewers, and one step drawn as text.

Knows spans alone: no role, no stage beyond its name, no clock. The file is a JSON array of Chrome trace events,
one per line, times in microseconds since the epoch; ui.perfetto.dev and chrome://tracing open it, with or
without its closing bracket.
"""

from __future__ import annotations

import dataclasses
import json
import os
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jaxflow.tracking.jsonl import DiskGuard, append_bytes
from jaxflow.tracking.text import figure, stage_words
from jaxflow.types import Span

_PROCESS = 1  # the one process of the trace; its rows are "threads"
_STEPS_ROW = 1  # viewers put the thread that has its process's number on top
_END = b"\n]\n"
_IDLE = "."
_NO_LETTER_LEFT = "#"


class Timeline:
    """Writes spans to a trace file: a row per pool, a row of steps. Disk errors are warned of once, never raised.

    Args:
        path: the file. A file that is there is continued, mended if a kill cut it; steps that a resumed run
            repeats are in it twice, each at its own time.
        steps: how many steps of this start are written; later ones are dropped, so that the file stays small.
        warn: told of the first error of the disk.
    """

    def __init__(self, path: Path, steps: int, warn: Callable[[str], None]):
        self._path, self._steps_left = path, steps
        self._guard = DiskGuard(warn)
        self._rows: dict[str, int] | None = None  # thread number of each pool; None: not opened yet

    @property
    def failures(self) -> int:
        """Counts the writes that did not reach the disk."""
        return self._guard.failures

    def write(self, step: int, spans: Sequence[Span]) -> None:
        """Appends the spans of one step and the step itself; they have left this process on return."""
        if self._steps_left == 0 or not spans:
            return
        self._steps_left -= 1
        with self._guard.writing(self._path):
            if self._rows is None:
                self._rows = _open(self._path)
            names = sorted({span.pool for span in spans} - self._rows.keys())
            added = {name: _STEPS_ROW + len(self._rows) + i for i, name in enumerate(names, start=1)}
            events = [_row_name(name, row) for name, row in added.items()]
            events += _step_events(step, spans, self._rows | added)
            append_bytes(self._path, b",\n" + _lines(events))
            self._rows |= added

    def close(self) -> None:
        """Ends the array, which makes the file valid JSON; what is written later opens it again."""
        if self._rows is None:
            return
        self._rows = None
        with self._guard.writing(self._path):
            append_bytes(self._path, _END)


def gantt(spans: Sequence[Span], columns: int) -> list[str]:
    """Draws one step: a line per pool over a common time axis, and what the letters stand for.

    A pool's share is busy time / wall time, where the wall time goes from the first start to the last end.
    Overlap is Σ seconds of calls / wall time: 1 where one call runs at any time, more where pools run at the same
    time. A span shorter than a column takes a whole one, from its longer neighbours if need be.

    Args:
        spans: of all pools; those inside a call lie within its time, on its pool.
        columns: of the time axis.

    Returns:
        Lines of plain text; none where there are no spans.
    """
    if not spans:
        return []
    pools = _by_pool(spans)
    everything = [stretch for stretches in pools.values() for stretch in stretches]
    begin = min(stretch.start for stretch in everything)
    wall = max(max(stretch.end for stretch in everything) - begin, 1)
    letters = _letters([s.span.name for s in sorted(everything, key=lambda s: (s.start, s.inside))])
    width = max(map(len, pools))
    lines = []
    for pool, stretches in pools.items():
        busy = sum(s.end - s.start for s in stretches if not s.inside) / wall
        drawn = _draw(stretches, letters, begin, wall, columns)
        lines.append(f"  {pool:<{width}} {busy:>4.0%} |{drawn}|")
    end = f"{figure(wall / 1e6)} s"
    lines.append(f"{'':{width + 8}}0{end:>{columns - 1}}")
    lines += _legend(everything, letters)
    total = sum(s.end - s.start for s in everything if not s.inside)
    lines.append(
        f"  calls add up to {figure(total / 1e6)} s in {figure(wall / 1e6)} s of wall time: "
        f"overlap {total / wall:.2f}"
    )
    return lines


def wall_seconds(spans: Sequence[Span]) -> float:
    """Returns the time from the first start to the last end, seconds; 0 where there are no spans."""
    if not spans:
        return 0.0
    return max(span.started + span.seconds for span in spans) - min(span.started for span in spans)


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """A span where it is drawn: in whole microseconds, within one span or after all others of its pool."""

    span: Span
    start: int  # microseconds since the epoch
    end: int
    inside: bool  # it is part of a call


def _by_pool(spans: Sequence[Span]) -> dict[str, list[_Stretch]]:
    """Fits the spans of every pool into one row; pools by their first start."""
    pools: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.started, span.pool)):
        pools.setdefault(span.pool, []).append(span)
    return {pool: _fit(its_spans) for pool, its_spans in pools.items()}


def _fit(spans: Sequence[Span]) -> list[_Stretch]:
    """Makes spans of one pool nest or follow one another; a span that crosses another's end begins there.

    Viewers drop spans that cross. They come about where a pool's first process enters the next call while its
    last one is still in the call before.
    """
    raw = [(_microseconds(span.started), _microseconds(span.started + span.seconds), span) for span in spans]
    fitted: list[_Stretch] = []
    around: list[_Stretch] = []
    for start, end, span in sorted(raw, key=lambda item: (item[0], -item[1])):
        while around and (end > around[-1].end or start >= around[-1].end):
            start = max(start, around.pop().end)
        if around:
            start = max(start, around[-1].start)
        stretch = _Stretch(span, start, max(start, end), inside=len(around) > 0)
        fitted.append(stretch)
        around.append(stretch)
    return fitted


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _step_events(step: int, spans: Sequence[Span], rows: Mapping[str, int]) -> list[dict[str, object]]:
    stretches = [stretch for its_stretches in _by_pool(spans).values() for stretch in its_stretches]
    start, end = min(s.start for s in stretches), max(s.end for s in stretches)
    events = [_event(f"step {step}", "step", _STEPS_ROW, start, end, {"step": step})]
    for stretch in stretches:
        span = stretch.span
        details = {"role": span.role, "step": step, "bytes": span.bytes, "tokens": span.tokens}
        # A call's own bytes travel before and after it: they have no speed that its seconds would tell.
        if stretch.inside and span.bytes > 0 and span.seconds > 0:
            details["MB/s"] = round(span.bytes / 1e6 / span.seconds, 3)
        row = rows[span.pool]
        events.append(_event(stage_words(span.name), span.name, row, stretch.start, stretch.end, details))
    return events


def _event(
    name: str, category: str, row: int, start: int, end: int, details: Mapping[str, object]
) -> dict[str, object]:
    times = {
        "ts": start,
        "dur": end - start,
    }  # whole numbers: a double of this size is off by 0.2 microseconds
    return {"ph": "X", "name": name, "cat": category, **times, "pid": _PROCESS, "tid": row, "args": details}


def _row_name(name: str, row: int) -> dict[str, object]:
    return {"ph": "M", "name": "thread_name", "pid": _PROCESS, "tid": row, "args": {"name": name}}


def _lines(events: Sequence[Mapping[str, object]]) -> bytes:
    # UTF-8 as it is: not every version of Perfetto reads \u escapes.
    return ",\n".join(json.dumps(event, ensure_ascii=False) for event in events).encode("utf-8", "replace")


def _open(path: Path) -> dict[str, int]:
    """Begins the file, or takes the end off an old one, atomically; returns the thread number of each pool."""
    path.parent.mkdir(parents=True, exist_ok=True)
    events = _read(path) if path.exists() else []
    if not events:
        process = {"ph": "M", "name": "process_name", "pid": _PROCESS, "args": {"name": "jaxflow"}}
        events = [process, _row_name("steps", _STEPS_ROW)]
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        file.write(b"[\n" + _lines(events))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    rows = [event for event in events if event.get("name") == "thread_name"]
    return {row["args"]["name"]: row["tid"] for row in rows if row["tid"] != _STEPS_ROW}


def _read(path: Path) -> list[dict]:
    """Reads the events of a trace file; what a kill cut off is left out."""
    events = []
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line.rstrip(b","))
        except ValueError:  # a bracket of the array, or a line that was cut
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _letters(names: Sequence[str]) -> dict[str, str]:
    """Gives every stage a letter of its own: the initial of its first or last word where that is free."""
    letters: dict[str, str] = {}
    for name in dict.fromkeys(names):
        words = stage_words(name).replace("_", " ").split()
        initials = "".join(word[0] for word in (words[:1] + words[-1:]))
        wished = initials + initials.upper() + string.ascii_letters + string.digits
        free = (letter for letter in wished if letter.isalnum() and letter not in letters.values())
        letters[name] = next(free, _NO_LETTER_LEFT)
    return letters


def _draw(
    stretches: Sequence[_Stretch], letters: Mapping[str, str], begin: int, wall: int, columns: int
) -> str:
    """Draws the stretches of one pool, shorter ones over longer ones, each in a column at least."""
    drawn: list[_Stretch | None] = [None] * columns
    own = []
    for stretch in sorted(stretches, key=lambda s: s.start - s.end):
        first = min((stretch.start - begin) * columns // wall, columns - 1)
        last = max(first, ((stretch.end - begin) * columns - 1) // wall)  # the column that its end is in
        drawn[first : last + 1] = [stretch] * (last + 1 - first)
        own.append((stretch, range(first, last + 1)))
    for stretch, its_columns in own:
        _reveal(stretch, its_columns, drawn)
    return "".join(_IDLE if stretch is None else letters[stretch.span.name] for stretch in drawn)


def _reveal(stretch: _Stretch, its_columns: range, drawn: list[_Stretch | None]) -> None:
    """Gives a stretch whose stage does not show in its own columns the nearest one that nobody loses by."""
    over = [drawn[column] for column in its_columns]
    if any(other is not None and other.span.name == stretch.span.name for other in over):
        return
    spare = [column for column, other in enumerate(drawn) if other is None or drawn.count(other) > 1]
    if spare:
        drawn[min(spare, key=lambda column: abs(column - its_columns[0]))] = stretch


def _legend(stretches: Sequence[_Stretch], letters: Mapping[str, str]) -> list[str]:
    width = max(len(stage_words(name)) for name in letters)
    lines = []
    for name, letter in letters.items():
        same = [stretch for stretch in stretches if stretch.span.name == name]
        seconds = sum(s.end - s.start for s in same) / 1e6
        where = "  (inside calls)" if all(s.inside for s in same) else ""
        lines.append(f"  {letter}  {stage_words(name):<{width}}  {figure(seconds):>7} s{where}")
    return lines
