import errno
import json
import math
import os
from pathlib import Path

import pytest

from jaxflow.tracking.jsonl import DiskGuard, JsonLines, read_rows
from jaxflow.types import UserError


def test_rows_come_back_as_written(tmp_path):
    lines = JsonLines(tmp_path / "rows.jsonl", "step")
    rows = [{"step": 1, "text": "a\nb\u2028c 中 \x1b"}, {"step": 2, "text": "lone \ud83d surrogate"}]
    lines.append(rows)
    assert read_rows(lines.path) == rows
    assert lines.path.read_bytes().count(b"\n") == 2


def test_numbers_without_a_json_form_are_null(tmp_path):
    lines = JsonLines(tmp_path / "rows.jsonl", "step")
    lines.append([{"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1}])
    assert lines.path.read_text() == '{"step": 1, "a": null, "b": null, "c": null, "d": 0.1}\n'


def test_truncation_keeps_exactly_the_rows_up_to_the_step(tmp_path):
    lines = JsonLines(tmp_path / "rows.jsonl", "step")
    for step in range(5):
        lines.append([{"step": step, "part": 0}, {"step": step, "part": 1}])
    lines.truncate_after(2)
    assert [(row["step"], row["part"]) for row in read_rows(lines.path)] == [
        (step, part) for step in range(3) for part in range(2)
    ]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_truncating_a_missing_file_leaves_it_missing(tmp_path):
    JsonLines(tmp_path / "rows.jsonl", "step").truncate_after(3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bytes_kept", range(1, 24))
def test_a_line_cut_at_any_byte_is_dropped_by_truncation(tmp_path, bytes_kept):
    path = tmp_path / "rows.jsonl"
    whole, cut = b'{"step": 1, "x": 0.5}\n', b'{"step": 2, "x": 12.125}'
    path.write_bytes(whole + cut[:bytes_kept])
    lines = JsonLines(path, "step")
    assert read_rows(path) == [{"step": 1, "x": 0.5}]
    lines.truncate_after(9)
    lines.append([{"step": 2, "x": 1.0}])
    assert path.read_bytes() == whole + b'{"step": 2, "x": 1.0}\n'


def test_a_whole_last_row_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    JsonLines(path, "step").truncate_after(2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_truncation_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "rows.jsonl", "step")
    lines.append([{"step": 1}, {"step": 2}])
    before = lines.path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        lines.truncate_after(1)
    assert lines.path.read_bytes() == before


def test_a_disk_that_fills_up_in_mid_row_leaves_no_part_of_it(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "rows.jsonl", "step")
    lines.append([{"step": 1}])
    monkeypatch.setattr(Path, "open", _full_after(3))
    with pytest.raises(OSError, match="No space"):
        lines.append([{"step": 2}])
    monkeypatch.undo()
    lines.append([{"step": 3}])
    assert [row["step"] for row in read_rows(lines.path)] == [1, 3]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: not a JSON object"):
        read_rows(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        read_rows(tmp_path / "none.jsonl")


def test_the_guard_warns_once_counts_all_and_lets_other_errors_pass(tmp_path):
    warnings = []
    guard = DiskGuard(warnings.append)
    for _ in range(3):
        with guard.writing(tmp_path):
            raise OSError(errno.EROFS, "Read-only file system")
    assert guard.failures == 3
    assert len(warnings) == 1 and "Read-only file system" in warnings[0] and str(tmp_path) in warnings[0]
    with pytest.raises(KeyError), guard.writing(tmp_path):
        raise KeyError("not the disk's")


def test_every_row_is_on_the_disk_when_append_returns(tmp_path):
    lines = JsonLines(tmp_path / "rows.jsonl", "step")
    lines.append([{"step": 1}])
    assert json.loads(lines.path.read_bytes()) == {"step": 1}


def _full_after(count):
    """Replaces Path.open: writes take `count` bytes, then the disk is full."""
    real = Path.open

    class Full:
        def __init__(self, file):
            self._file, self._left = file, count

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, data):
            if self._left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken, self._left = self._file.write(data[: self._left]), 0
            return taken

        def tell(self):
            return self._file.tell()

        def truncate(self, size):
            return self._file.truncate(size)

    return lambda path, mode, buffering: Full(real(path, mode, buffering=buffering))
