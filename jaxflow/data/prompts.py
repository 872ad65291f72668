"""Prompt rows from JSONL and Parquet files, and the account of what was kept and what was not.

Knows the row's keys (verl's dialect included) and the prompt limit. Does not know batches,
rewards or models: ground truth and extra information pass through unread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxflow.data.records import Account, Columns, Record, optional, plain_at, read_account, shortened
from jaxflow.data.tokenizer import Messages, Tokenizer
from jaxflow.types import PromptRow, UserError

_EMPTY = "empty prompt"
_NOT_UNICODE = "prompt that is not valid Unicode"
_OVERLONG = "prompt longer than the limit"


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

    account: Account[PromptRow]
    prompt_tokens: PromptLengths  # of the kept rows

    def describe(self) -> str:
        """Write the report as lines for people."""
        lengths = self.prompt_tokens
        return "\n".join(
            [
                *self.account.describe(),
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
    seed_key: str,
    max_prompt_tokens: int,
    overlong: Literal["drop", "error"],
) -> LoadedRows:
    """Read and tokenise prompt rows.

    A row has a prompt (text, or chat messages with `role` and `content`) under `prompt_key`, `ground_truth`
    or verl's `reward_model.ground_truth`, and optionally `data_source` (else the file's stem), `extra_info` and,
    under `seed_key` if that is not empty, a seed of its own. Empty prompts, prompts that are not Unicode and, if
    `overlong` is "drop", longer ones than `max_prompt_tokens` are dropped and counted.

    Raises:
        UserError: a file is missing, unreadable or of an unknown kind; a row is malformed (its file and line,
            or Parquet row, are named); a prompt is too long and `overlong` is "error"; no row is left.
    """

    def make(record: Record, place: str, stem: str) -> PromptRow | str:
        row = _row(record, place, stem, tokenizer, prompt_key)
        if isinstance(row, str):
            return row
        row = dataclasses.replace(row, seed=_own_seed(record, place, seed_key)) if seed_key else row
        return within_limit(row, place, max_prompt_tokens, overlong)

    named = {prompt_key, "ground_truth", "reward_model", "data_source", "extra_info"}
    wanted = frozenset(named | {seed_key} if seed_key else named)
    columns = Columns(wanted, (prompt_key,), "name it with data.prompt_key")
    account = read_account(files, columns, make, "prompt")
    return LoadedRows(account.rows, DataReport(account, prompt_lengths(account.rows)))


def _own_seed(record: Record, place: str, seed_key: str) -> int:
    given = optional(record, place, seed_key, int, "a whole number", None)
    if given is None:
        return -1
    # Sample g of the prompt draws from seed + g, which has to fit as well.
    if isinstance(given, bool) or not 0 <= given < 1 << 30:
        raise UserError(f"{place}: {seed_key!r} is {given!r}; a seed is a whole number in [0, 2³⁰)")
    return given


def within_limit(row: PromptRow, place: str, max_prompt_tokens: int, overlong: str) -> PromptRow | str:
    """Return the row, or why it is dropped: its prompt is too long, which is a `UserError` if `overlong` is "error"."""
    if len(row.tokens) <= max_prompt_tokens:
        return row
    if overlong == "error":
        raise UserError(
            f"{place}: a prompt of {len(row.tokens):,} tokens, the limit is {max_prompt_tokens:,}; shorten it, "
            "raise data.max_prompt_tokens, or set data.overlong_prompts to drop"
        )
    return _OVERLONG


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


def _row(record: Record, place: str, stem: str, tokenizer: Tokenizer, prompt_key: str) -> PromptRow | str:
    """Make one row, or say for which reason it is dropped."""
    prompt = _prompt(record, place, prompt_key)
    return asked(record, place, stem, prompt, _ground_truth(record, place), tokenizer)


def asked(
    record: Record, place: str, stem: str, prompt: str | Messages, ground_truth: object, tokenizer: Tokenizer
) -> PromptRow | str:
    """Make the row of a prompt, or say for which reason it is dropped."""
    data_source = optional(record, place, "data_source", str, "text", stem)
    extra_info = optional(record, place, "extra_info", Mapping, "a mapping", {})
    contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if not any(content.strip() for content in contents):
        return _EMPTY
    if not all(map(is_unicode, contents)):
        return _NOT_UNICODE
    try:
        text = prompt if isinstance(prompt, str) else tokenizer.render_chat(prompt)
        tokens = tokenizer.encode_prompt(prompt)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    # A tokenizer may strip all that a prompt holds; a sequence needs a token to start from.
    return PromptRow(text, tuple(tokens), ground_truth, data_source, extra_info) if tokens else _EMPTY


def is_unicode(text: str) -> bool:
    """Return whether a text has no half characters, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _prompt(record: Record, place: str, prompt_key: str) -> str | Messages:
    if prompt_key not in record:
        raise UserError(
            f"{place}: no key {prompt_key!r} among {', '.join(record)}; name it with data.prompt_key"
        )
    prompt = record[prompt_key]
    return "" if prompt is None else text_or_messages(prompt, place, prompt_key)


def text_or_messages(value: object, place: str, key: str) -> str | list[Mapping[str, str]]:
    """Read what a policy is shown or says: text, or chat messages with `role` and `content`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise UserError(
            f"{place}: {key!r} is {type(value).__name__}; it must be text or a list of chat messages"
        )
    return [_message(message, place, key) for message in value]


def _message(message: object, place: str, key: str) -> Mapping[str, str]:
    if isinstance(message, Mapping):
        role, content = message.get("role"), _content(message.get("content"))
        if isinstance(role, str) and isinstance(content, str):
            return {"role": role, "content": content}
    raise UserError(
        f"{place}: a message in {key!r} is {shortened(message)}; "
        "each needs a `role` and a `content`, both text"
    )


def _content(content: object) -> object:
    """Join a content given in parts, as for models that see pictures too, where all of them are text."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if whole else content


def _ground_truth(record: Record, place: str) -> object:
    ground_truth = record.get("ground_truth")
    reward_model = record.get("reward_model")
    if ground_truth is None and isinstance(reward_model, Mapping):
        ground_truth = reward_model.get("ground_truth")
    if ground_truth is None:
        raise UserError(
            f"{place}: no ground truth; give `ground_truth`, or `reward_model` with a `ground_truth` in it"
        )
    return plain_at(ground_truth, place, "ground_truth")
