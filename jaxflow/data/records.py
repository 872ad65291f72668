"""Records of JSONL and Parquet files, each with its place, and the account of what becomes of them.

Knows file formats. Does not know what a record means.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from jaxflow.data.plain import plain
from jaxflow.types import UserError

Record = Mapping[str, object]
Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The fields of interest: of Parquet files others are not even read."""

    wanted: frozenset[str]
    required: tuple[str, ...]  # one of these has to be in each file with columns; empty: none has
    hint: str  # how the required ones are renamed


@dataclasses.dataclass(frozen=True)
class Account(Generic[Row]):
    """What became of the records of some files."""

    rows: tuple[Row, ...]  # made of records, in file order
    dropped: Mapping[str, int]  # reason -> records
    first_dropped: Mapping[str, str]  # reason -> "file:line" of its first record

    @property
    def read(self) -> int:
        """Count the records in the files."""
        return len(self.rows) + sum(self.dropped.values())

    def describe(self) -> list[str]:
        """Write the account as lines for people."""
        return [f"{self.read:,} rows read, {len(self.rows):,} kept", *self.reasons()]

    def reasons(self) -> list[str]:
        """Say for each reason how many were dropped, and where the first one is."""
        return [
            f"dropped {count:,}: {reason} (first: {self.first_dropped[reason]})"
            for reason, count in self.dropped.items()
        ]


def read_account(
    files: Sequence[str], columns: Columns, make: Callable[[Record, str, str], Row | str], what: str
) -> Account[Row]:
    """Make rows of all records: `make(record, place, stem of the file)` gives a row, or why there is none.

    `place` is "file:line", from 1; of Parquet, file and row. `what` names the rows.

    Raises:
        UserError: a file is missing, unreadable or of an unknown kind, or no row is left; what `make` raises passes.
    """
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    first_dropped: dict[str, str] = {}
    for file in files:
        path = pathlib.Path(file)
        for place, record in _reader(path)(path, columns):
            made = make(record, place, path.stem)
            if isinstance(made, str):
                dropped[made] += 1
                first_dropped.setdefault(made, place)
            else:
                rows.append(made)
    account = Account(tuple(rows), dict(dropped), first_dropped)
    if not rows:
        said = f"no {what} is left of {account.read:,} rows in {', '.join(map(str, files))}"
        raise UserError("\n".join([said, *account.reasons()]))
    return account


def shortened(value: object) -> str:
    """Show a value in at most a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def optional(record: Record, place: str, key: str, kind: type | tuple[type, ...], name: str, absent: object):
    """Return a record's value, `absent` where there is none; `UserError` where it is not of its kind, `name`."""
    # Parquet writes a missing value as null, and a map as pairs.
    value = record.get(key)
    if kind is Mapping and isinstance(value, list) and all(isinstance(item, tuple) for item in value):
        value = dict(value)
    if value is None:
        return absent
    if not isinstance(value, kind):
        raise UserError(f"{place}: {key!r} is {shortened(value)}; it must be {name}")
    return plain_at(value, place, key)


def plain_at(value: object, place: str, key: str) -> object:
    """Return a record's value in JSON's terms; `UserError` where it has none."""
    try:
        return plain(value)
    except ValueError as error:
        raise UserError(f"{place}: {key!r} holds {error}") from error


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path, Columns], Iterator[tuple[str, Record]]]:
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"data file {str(path)!r} is neither .jsonl nor .parquet; convert or rename it")
    if not path.is_file():
        raise UserError(
            f"data file {str(path)!r} does not exist; check data.train_files, validation_files, pretraining_files"
        )
    return readers[path.suffix]


def _read_jsonl(path: pathlib.Path, columns: Columns) -> Iterator[tuple[str, Record]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not a JSON object in UTF-8: {error}") from error
            if not isinstance(record, dict):
                raise UserError(
                    f"{place}: {shortened(record)} is not a JSON object; "
                    f"each line holds one, with {' or '.join(map(repr, columns.required))}"
                )
            yield place, record


def _read_parquet(path: pathlib.Path, columns: Columns) -> Iterator[tuple[str, Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not set(columns.required) & set(names):
                missing = " or ".join(map(repr, columns.required))
                raise UserError(f"{path}: no column {missing} among {', '.join(names)}; {columns.hint}")
            number = 0
            for batch in file.iter_batches(columns=[name for name in names if name in columns.wanted]):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error
