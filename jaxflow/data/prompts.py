"""Prompt rows from JSONL and Parquet files, and the account of what was kept and what was not.

Knows file formats, the row's keys (verl's dialect included) and the prompt limit. Does not know batches,
rewards or models: ground truth and extra information pass through unread.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from jaxflow.data.plain import plain
from jaxflow.data.tokenizer import Messages, Tokenizer
from jaxflow.types import PromptRow, UserError

_EMPTY = "empty prompt"
_NOT_UNICODE = "prompt that is not valid Unicode"
_OVERLONG = "prompt longer than the limit"

_Record = tuple[str, Mapping[str, object]]  # place ("file:line", from 1; Parquet: row) and the row's fields


@dataclasses.dataclass(frozen=True)
class PromptLengths:
    """How long the prompts are, in tokens."""

    minimum: int
    mean: float
    median: int
    percentile_95: int
    maximum: int


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What became of the rows of some files."""

    read: int  # rows in the files
    kept: int
    dropped: Mapping[str, int]  # reason -> rows
    first_dropped: Mapping[str, str]  # reason -> "file:line" of its first row
    prompt_tokens: PromptLengths  # of the kept rows

    def describe(self) -> str:
        """Write the report as lines for people."""
        lengths = self.prompt_tokens
        return "\n".join(
            [
                f"{self.read:,} rows read, {self.kept:,} kept",
                *_dropped_lines(self.dropped, self.first_dropped),
                f"prompt tokens: min {lengths.minimum:,}, mean {lengths.mean:,.1f}, "
                f"median {lengths.median:,}, 95 % {lengths.percentile_95:,}, max {lengths.maximum:,}",
            ]
        )


@dataclasses.dataclass(frozen=True)
class LoadedRows:
    """The usable rows of some files, in file order, and the report on them."""

    rows: tuple[PromptRow, ...]
    report: DataReport


def load_rows(
    files: Sequence[str],
    tokenizer: Tokenizer,
    prompt_key: str,
    max_prompt_tokens: int,
    overlong: Literal["drop", "error"],
) -> LoadedRows:
    """Read and tokenise prompt rows.

    A row has a prompt (text, or chat messages with `role` and `content`) under `prompt_key`, `ground_truth`
    or verl's `reward_model.ground_truth`, and optionally `data_source` (else the file's stem) and
    `extra_info`. Empty prompts, prompts that are not Unicode and, if `overlong` is "drop", longer ones than
    `max_prompt_tokens` are dropped and counted.

    Raises:
        UserError: a file is missing, unreadable or of an unknown kind; a row is malformed (its file and line,
            or Parquet row, are named); a prompt is too long and `overlong` is "error"; no row is left.
    """
    rows: list[PromptRow] = []
    dropped: Counter[str] = Counter()
    first_dropped: dict[str, str] = {}
    for file in files:
        path = pathlib.Path(file)
        for place, record in _reader(path)(path, prompt_key):
            row = _row(record, place, path.stem, tokenizer, prompt_key)
            if isinstance(row, PromptRow) and len(row.tokens) > max_prompt_tokens:
                if overlong == "error":
                    raise UserError(
                        f"{place}: a prompt of {len(row.tokens):,} tokens, the limit is "
                        f"{max_prompt_tokens:,}; shorten it, raise data.max_prompt_tokens, "
                        "or set data.overlong_prompts to drop"
                    )
                row = _OVERLONG
            if isinstance(row, str):
                dropped[row] += 1
                first_dropped.setdefault(row, place)
            else:
                rows.append(row)
    read = len(rows) + dropped.total()
    if not rows:
        lines = _dropped_lines(dropped, first_dropped)
        raise UserError(
            "\n".join([f"no prompt is left of {read:,} rows in {', '.join(map(str, files))}", *lines])
        )
    report = DataReport(read, len(rows), dict(dropped), first_dropped, prompt_lengths(rows))
    return LoadedRows(tuple(rows), report)


def prompt_lengths(rows: Sequence[PromptRow]) -> PromptLengths:
    """Summarise the prompt lengths of at least one row."""
    lengths = np.array([len(row.tokens) for row in rows])
    median, percentile_95 = np.percentile(lengths, [50, 95], method="nearest")
    return PromptLengths(
        minimum=int(lengths.min()),
        mean=float(lengths.mean()),
        median=int(median),
        percentile_95=int(percentile_95),
        maximum=int(lengths.max()),
    )


def _dropped_lines(dropped: Mapping[str, int], first_dropped: Mapping[str, str]) -> list[str]:
    return [
        f"dropped {count:,}: {reason} (first: {first_dropped[reason]})" for reason, count in dropped.items()
    ]


def _row(
    record: Mapping[str, object], place: str, stem: str, tokenizer: Tokenizer, prompt_key: str
) -> PromptRow | str:
    """Make one row, or say for which reason it is dropped."""
    prompt = _prompt(record, place, prompt_key)
    ground_truth = _ground_truth(record, place)
    data_source = _optional(record, place, "data_source", str, "text", stem)
    extra_info = _optional(record, place, "extra_info", Mapping, "a mapping", {})
    contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if not any(content.strip() for content in contents):
        return _EMPTY
    try:
        for content in contents:
            content.encode("utf-8")
    except UnicodeEncodeError:
        return _NOT_UNICODE
    try:
        text = prompt if isinstance(prompt, str) else tokenizer.render_chat(prompt)
        tokens = tokenizer.encode_prompt(prompt)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    # A tokenizer may strip all that a prompt holds; a sequence needs a token to start from.
    return PromptRow(text, tuple(tokens), ground_truth, data_source, extra_info) if tokens else _EMPTY


def _prompt(record: Mapping[str, object], place: str, prompt_key: str) -> str | Messages:
    if prompt_key not in record:
        raise UserError(
            f"{place}: no key {prompt_key!r} among {', '.join(record)}; name it with data.prompt_key"
        )
    prompt = record[prompt_key]
    if prompt is None or isinstance(prompt, str):
        return "" if prompt is None else prompt
    if not isinstance(prompt, list):
        raise UserError(
            f"{place}: {prompt_key!r} is {type(prompt).__name__}; it must be text or a list of chat messages"
        )
    return [_message(message, place, prompt_key) for message in prompt]


def _message(message: object, place: str, prompt_key: str) -> Mapping[str, str]:
    if isinstance(message, Mapping):
        role, content = message.get("role"), _content(message.get("content"))
        if isinstance(role, str) and isinstance(content, str):
            return {"role": role, "content": content}
    raise UserError(
        f"{place}: a message in {prompt_key!r} is {_shortened(message)}; "
        "each needs a `role` and a `content`, both text"
    )


def _content(content: object) -> object:
    """Join a content given in parts, as for models that see pictures too, where all of them are text."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if whole else content


def _ground_truth(record: Mapping[str, object], place: str) -> object:
    ground_truth = record.get("ground_truth")
    reward_model = record.get("reward_model")
    if ground_truth is None and isinstance(reward_model, Mapping):
        ground_truth = reward_model.get("ground_truth")
    if ground_truth is None:
        raise UserError(
            f"{place}: no ground truth; give `ground_truth`, or `reward_model` with a `ground_truth` in it"
        )
    return _plain(ground_truth, place, "ground_truth")


def _plain(value: object, place: str, key: str) -> object:
    try:
        return plain(value)
    except ValueError as error:
        raise UserError(f"{place}: {key!r} holds {error}") from error


def _optional(record: Mapping[str, object], place: str, key: str, kind: type, name: str, absent: object):
    # Parquet writes a missing value as null, and a map as pairs.
    value = record.get(key)
    if kind is Mapping and isinstance(value, list) and all(isinstance(item, tuple) for item in value):
        value = dict(value)
    if value is None:
        return absent
    if not isinstance(value, kind):
        raise UserError(f"{place}: {key!r} is {_shortened(value)}; it must be {name}")
    return _plain(value, place, key)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path, str], Iterator[_Record]]:
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UserError(f"data file {str(path)!r} is neither .jsonl nor .parquet; convert or rename it")
    if not path.is_file():
        raise UserError(
            f"data file {str(path)!r} does not exist; check data.train_files and data.validation_files"
        )
    return readers[path.suffix]


def _read_jsonl(path: pathlib.Path, prompt_key: str) -> Iterator[_Record]:
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
                    f"{place}: {_shortened(record)} is not a JSON object; "
                    f"each line holds one, with {prompt_key!r}"
                )
            yield place, record


def _read_parquet(path: pathlib.Path, prompt_key: str) -> Iterator[_Record]:
    import pyarrow
    import pyarrow.parquet

    wanted = {prompt_key, "ground_truth", "reward_model", "data_source", "extra_info"}
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if prompt_key not in names:
                raise UserError(
                    f"{path}: no column {prompt_key!r} among {', '.join(names)}; name it with data.prompt_key"
                )
            number = 0
            for batch in file.iter_batches(columns=[name for name in names if name in wanted]):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error
