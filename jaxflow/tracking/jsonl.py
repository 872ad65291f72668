"""Files of JSON rows that survive a kill, a full disk and a resume.

Knows nothing of what the rows mean, beyond the key that holds their step. A row is one line; it is whole or
it is not there. NaN and infinities have no JSON form and are written as null.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from jaxflow.types import UserError


class DiskGuard:
    """Turns disk errors into one warning and a count, so that a full disk never ends a run."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self.failures = 0  # writes that did not reach the disk

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Runs the body; an OSError in it is counted, and the first one is told."""
        try:
            yield
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                self._warn(
                    f"cannot write {path} ({error}): the run goes on and what fails to be written there is "
                    "lost; free space on the disk or make it writable"
                )


def append_bytes(path: Path, data: bytes) -> None:
    """Adds bytes at the end of a file, all or none; they have left this process on return."""
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            file.truncate(start)
            raise


class JsonLines:
    """A file of JSON rows, appended whole, cut back to a step on resume. Raises the disk's OSError."""

    def __init__(self, path: Path, step_key: str):
        self.path = path
        self._step_key = step_key

    def append(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Adds rows at the end; they have left this process on return. On an error none of them stays."""
        # backslashreplace turns a lone surrogate, which UTF-8 cannot hold, into its JSON escape.
        data = "".join(_line(row) for row in rows).encode("utf-8", "backslashreplace")
        append_bytes(self.path, data)

    def truncate_after(self, step: int) -> None:
        """Drops rows of later steps and lines that are no rows (left by a kill in mid-write), atomically."""
        if not self.path.exists():
            return
        kept = self.path.with_name(self.path.name + ".tmp")
        with self.path.open("rb") as source, kept.open("wb") as target:
            for line in source:
                row = _parse(line)
                if row is not None and self._step_key in row and row[self._step_key] <= step:
                    target.write(line.rstrip(b"\n") + b"\n")
            target.flush()
            os.fsync(target.fileno())
        os.replace(kept, self.path)


def read_rows(path: Path) -> list[dict[str, object]]:
    """Reads every row; a half-written last line is left out.

    Raises:
        UserError: the file is missing, or a line before the last is not a JSON object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the workdir of a run that has written a row") from error
    lines = data.split(b"\n")
    rows = [_parse(line) for line in lines]
    if rows[-1] is None:
        rows.pop()
    for number, row in enumerate(rows, start=1):
        if row is None:
            raise UserError(f"{path}, line {number}: not a JSON object; delete the line")
    return rows


def _line(row: Mapping[str, object]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
