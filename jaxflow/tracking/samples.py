"""Generated answers: samples.jsonl, which of them to show, and how to show text nobody has vouched for.

Knows nothing of how answers are made or scored.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxflow.tracking.jsonl import DiskGuard, JsonLines
from jaxflow.types import Sample

FILE_NAME = "samples.jsonl"

# Cc control, Cf invisible formatting (direction overrides among it), Cs lone surrogate, Zl/Zp odd line ends.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class SamplesWriter:
    """Writes one row per sample to samples.jsonl. Disk errors are warned of once, counted, never raised."""

    def __init__(self, workdir: Path, warn: Callable[[str], None]):
        self._lines = JsonLines(workdir / FILE_NAME, "step")
        self._guard = DiskGuard(warn)
        with self._guard.writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)

    @property
    def failures(self) -> int:
        """Counts the writes that did not reach the disk."""
        return self._guard.failures

    def write(self, samples: Sequence[Sample]) -> None:
        """Appends the samples; they have left this process on return."""
        with self._guard.writing(self._lines.path):
            self._lines.append([dataclasses.asdict(sample) for sample in samples])

    def truncate_after(self, step: int) -> None:
        """Drops samples of steps after `step`, so that a resumed run leaves an uninterrupted one's file."""
        with self._guard.writing(self._lines.path):
            self._lines.truncate_after(step)


def with_costs(samples: Sequence[Sample], costs: Sequence[Sample]) -> tuple[Sample, ...]:
    """Adds to each sample, as `cost` and whatever else was told, what another judge said of the same answer."""
    return tuple(
        dataclasses.replace(sample, numbers={**sample.numbers, **cost.numbers, "cost": cost.score})
        for sample, cost in zip(samples, costs, strict=True)
    )


def pick_samples(samples: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """Picks rows to show: in turn the next best, the next worst and the next in order; best score first.

    Ties go to the earlier row and a score that is no number counts as the worst, so equal input gives equal
    rows. All samples are returned where there are no more than `count`.
    """
    merit = [-math.inf if math.isnan(sample.score) else sample.score for sample in samples]
    indices = range(len(samples))
    best = sorted(indices, key=lambda i: (-merit[i], i))
    worst = sorted(indices, key=lambda i: (merit[i], i))
    turns = (i for turn in zip(best, worst, indices, strict=True) for i in turn)
    picked = list(dict.fromkeys(turns))[:count]
    return tuple(samples[i] for i in sorted(picked, key=lambda i: (-merit[i], i)))


def sanitise(text: str) -> str:
    """Makes every character visible, on one line: newlines as ⏎, ESC as ␛, other hidden ones as `\\u202e`.

    A model's or a data file's text can thus neither move the cursor nor recolour or reorder a terminal line.
    """
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def shorten(text: str, characters: int) -> str:
    """Cuts the middle out of a text longer than `characters`; beginnings and endings tell the most."""
    if len(text) <= characters:
        return text
    head = (characters - 3) // 2
    tail = characters - 3 - head
    return f"{text[:head]} … {text[len(text) - tail :]}"


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "⏎"
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in _HIDDEN_CATEGORIES:
        return f"\\u{code:04x}"
    return character
