"""Rows to learn from without generating: demonstrations, judged responses, and pairs of which one is better.

Knows the columns (TRL's, verl's and PKU-SafeRLHF's names) and the limits. Does not know batches, losses or models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxflow.data.prompts import asked, is_unicode, text_or_messages, within_limit
from jaxflow.data.records import Account, Columns, Record, optional, plain_at, read_account, shortened
from jaxflow.data.tokenizer import Messages, Tokenizer
from jaxflow.types import PromptRow, UserError

_EMPTY = "empty response"
_SAME = "chosen and rejected responses are the same"
_NOT_UNICODE = "response that is not valid Unicode"
_OVERLONG = "response longer than the limit"
# PKU-SafeRLHF numbers its responses instead of ranking them.
_NUMBERED = ("response_0", "response_1")


@dataclasses.dataclass(frozen=True)
class DemonstrationRow:
    """A prompt and the response to imitate."""

    asked: PromptRow  # its ground truth is the response's text where the data has none
    response: tuple[int, ...]  # token ids, the end token included

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """Return all responses of the row."""
        return (self.response,)


@dataclasses.dataclass(frozen=True)
class JudgedRow:
    """A prompt and a response to it that was wanted or not."""

    asked: PromptRow
    response: tuple[int, ...]  # token ids, the end token included where there is one
    wanted: bool

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """Return all responses of the row."""
        return (self.response,)


@dataclasses.dataclass(frozen=True)
class PreferenceRow:
    """A prompt and two responses to it, the better one first; of costs, the less harmful one."""

    asked: PromptRow
    chosen: tuple[int, ...]  # token ids, the end token included where there is one
    rejected: tuple[int, ...]
    margin: float = 0.0  # by which the chosen response should at least lead; 0: not told
    chosen_harm: float = 0.0  # +1: unsafe, -1: safe, 0: not told
    rejected_harm: float = 0.0

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """Return all responses of the row."""
        return (self.chosen, self.rejected)

    @property
    def judged(self) -> tuple[JudgedRow, JudgedRow]:
        """Return both responses apart: the chosen one was wanted, the rejected one was not."""
        return JudgedRow(self.asked, self.chosen, True), JudgedRow(self.asked, self.rejected, False)


@dataclasses.dataclass(frozen=True)
class Keys:
    """The names of the columns."""

    prompt: str
    response: str
    chosen: str
    rejected: str
    label: str
    margin: str
    chosen_safe: str
    rejected_safe: str


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long a row may be, and what is done about longer ones."""

    max_prompt_tokens: int
    max_response_tokens: int  # end token included
    overlong: str  # drop | error


def load_demonstrations(
    files: Sequence[str], tokenizer: Tokenizer, keys: Keys, limits: Limits
) -> Account[DemonstrationRow]:
    """Read prompts with responses: text or chat messages, or one chat `messages` that ends with the response.

    Raises:
        UserError: as `read_account`; a row is malformed (its file and line are named), or longer than a limit and
            `limits.overlong` is "error".
    """
    columns = _columns(keys, (keys.response, "completion", "messages"), "name it with data.response_key")

    def make(record: Record, place: str, stem: str) -> DemonstrationRow | str:
        prompt, response = _demonstrated(record, place, keys)
        return _made(record, place, stem, prompt, (response,), tokenizer, limits, DemonstrationRow)

    return read_account(files, columns, make, "demonstration")


def load_preferences(
    files: Sequence[str], tokenizer: Tokenizer, keys: Keys, limits: Limits, harm: bool
) -> Account[PreferenceRow]:
    """Read pairs of responses; with `harm` the chosen one is the safer one, and labels of both must be there.

    A row has chosen and rejected responses (text, or chat messages, which may begin with the prompt), or
    PKU-SafeRLHF's numbered ones; the margin is optional.

    Raises:
        UserError: as `load_demonstrations`; with `harm` also where a label is missing.
    """
    columns = _columns(keys, (keys.chosen, _NUMBERED[0]), "name it with data.chosen_key")

    def make(record: Record, place: str, stem: str) -> PreferenceRow | str:
        return _pair(record, place, stem, tokenizer, keys, limits, harm)

    return read_account(files, columns, make, "pair")


def load_judgements(
    files: Sequence[str], tokenizer: Tokenizer, keys: Keys, limits: Limits
) -> Account[tuple[JudgedRow, ...]]:
    """Read responses that were wanted or not, each with its label; a row that has a pair instead gives two of them.

    A row without a label is one of `load_preferences`, without harm.

    Raises:
        UserError: as `load_demonstrations` and `load_preferences`; also where a label is neither true nor false.
    """
    needed = (keys.label, keys.chosen, _NUMBERED[0])
    columns = _columns(keys, needed, "name it with data.label_key or data.chosen_key")

    def make(record: Record, place: str, stem: str) -> tuple[JudgedRow, ...] | str:
        if record.get(keys.label) is None:
            if not {keys.chosen, _NUMBERED[0]} & set(record):
                raise UserError(
                    f"{place}: no {keys.label!r} and no pair among {', '.join(record)}; name the label with"
                    " data.label_key, or the pair with data.chosen_key and data.rejected_key"
                )
            pair = _pair(record, place, stem, tokenizer, keys, limits, False)
            return pair if isinstance(pair, str) else pair.judged
        if record[keys.label] not in (True, False):  # 1 and 0 are these
            shown = shortened(record[keys.label])
            raise UserError(f"{place}: {keys.label!r} is {shown}; it must be true or false")
        prompt, response = _demonstrated(record, place, keys)
        row = _made(record, place, stem, prompt, (response,), tokenizer, limits, DemonstrationRow)
        if isinstance(row, str):
            return row
        return (JudgedRow(row.asked, row.response, bool(record[keys.label])),)

    return read_account(files, columns, make, "judged response")


def _pair(
    record: Record,
    place: str,
    stem: str,
    tokenizer: Tokenizer,
    keys: Keys,
    limits: Limits,
    harm: bool,
) -> PreferenceRow | str:
    """Make a pair of a record, or say for which reason it is dropped."""
    if keys.chosen not in record and _NUMBERED[0] in record:
        record = _ranked(record, place, keys, harm)
    prompt, chosen, rejected = _compared(record, place, keys)
    row = _made(record, place, stem, prompt, (chosen, rejected), tokenizer, limits, PreferenceRow)
    if isinstance(row, str):
        return row
    if row.chosen == row.rejected:
        return _SAME
    labels = [_harm(record, place, key, harm) for key in (keys.chosen_safe, keys.rejected_safe)]
    margin = float(optional(record, place, keys.margin, (int, float), "a number", 0.0))
    if not math.isfinite(margin):
        raise UserError(f"{place}: {keys.margin!r} is {margin}; it must be a finite number")
    return dataclasses.replace(row, margin=margin, chosen_harm=labels[0], rejected_harm=labels[1])


def _columns(keys: Keys, required: tuple[str, ...], hint: str) -> Columns:
    numbered = [f"is_{name}_safe" for name in _NUMBERED]
    others = ("completion", "messages", "better_response_id", "safer_response_id", *_NUMBERED, *numbered)
    shared = ("ground_truth", "data_source", "extra_info")
    return Columns(frozenset((*dataclasses.asdict(keys).values(), *others, *shared)), required, hint)


def _made(
    record: Record,
    place: str,
    stem: str,
    prompt: str | Messages,
    responses: tuple[str, ...],
    tokenizer: Tokenizer,
    limits: Limits,
    kind: type,
):
    """Make a row of a kind, or say for which reason it is dropped."""
    if not all(map(is_unicode, responses)):
        return _NOT_UNICODE
    if not all(response.strip() for response in responses):
        return _EMPTY
    given = plain_at(record.get("ground_truth"), place, "ground_truth")
    row = asked(record, place, stem, prompt, responses[0] if given is None else given, tokenizer)
    if isinstance(row, PromptRow):
        row = within_limit(row, place, limits.max_prompt_tokens, limits.overlong)
    if isinstance(row, str):
        return row
    try:
        encoded = [(*tokenizer.encode(response), tokenizer.end_ids[0]) for response in responses]
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    longest = max(map(len, encoded))
    if longest > limits.max_response_tokens:
        if limits.overlong == "error":
            raise UserError(
                f"{place}: a response of {longest:,} tokens with its end, the limit is "
                f"{limits.max_response_tokens:,}; shorten it, raise rollout.max_response_tokens, or set "
                "data.overlong_prompts to drop"
            )
        return _OVERLONG
    return kind(row, *encoded)


def _demonstrated(record: Record, place: str, keys: Keys) -> tuple[str | Messages, str]:
    if "messages" in record and keys.response not in record and "completion" not in record:
        chat = text_or_messages(record["messages"], place, "messages")
        if isinstance(chat, str) or len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise UserError(f"{place}: 'messages' must be a chat that ends with a message of the assistant")
        return chat[:-1], chat[-1]["content"]
    key = keys.response if keys.response in record else "completion"
    return _asked_of(record, place, keys), _answer(
        _field(record, place, key, "data.response_key"), place, key
    )


def _compared(record: Record, place: str, keys: Keys) -> tuple[str | Messages, str, str]:
    """Return prompt, chosen and rejected response; two whole chats give their common beginning as the prompt."""
    pair = [
        _field(record, place, key, f"data.{name}_key")
        for key, name in ((keys.chosen, "chosen"), (keys.rejected, "rejected"))
    ]
    if keys.prompt in record:
        chosen, rejected = map(_answer, pair, (place, place), (keys.chosen, keys.rejected))
        return _asked_of(record, place, keys), chosen, rejected
    chats = [chat for chat in pair if not isinstance(chat, str)]
    if len(chats) < 2 or any(len(chat) < 2 for chat in chats) or chats[0][:-1] != chats[1][:-1]:
        raise UserError(
            f"{place}: no key {keys.prompt!r}, so {keys.chosen!r} and {keys.rejected!r} must be chats that differ in"
            " their last message alone; else name the prompt with data.prompt_key"
        )
    return chats[0][:-1], *(_answer(chat[-1:], place, keys.chosen) for chat in chats)


def _field(record: Record, place: str, key: str, config_key: str) -> str | Messages:
    if record.get(key) is None:
        raise UserError(f"{place}: no {key!r} among {', '.join(record)}; name it with {config_key}")
    return text_or_messages(record[key], place, key)


def _asked_of(record: Record, place: str, keys: Keys) -> str | Messages:
    return _field(record, place, keys.prompt, "data.prompt_key")


def _answer(response: str | Messages, place: str, key: str) -> str:
    if isinstance(response, str):
        return response
    if len(response) != 1 or response[0]["role"] != "assistant":
        raise UserError(f"{place}: {key!r} must be text, or a chat of one message of the assistant")
    return response[0]["content"]


def _harm(record: Record, place: str, key: str, needed: bool) -> float:
    if needed and record.get(key) is None:
        raise UserError(
            f"{place}: a cost model learns from labels, and there is no {key!r}; give true or false"
        )
    safe = optional(record, place, key, bool, "true or false", None)
    return 0.0 if safe is None else -1.0 if safe else 1.0


def _ranked(record: Record, place: str, keys: Keys, harm: bool) -> Record:
    """Turn a numbered pair into a chosen and a rejected response, by harm or by which one is better."""
    by = "safer_response_id" if harm else "better_response_id"
    if record.get(by) not in (0, 1):
        raise UserError(f"{place}: {by!r} is {shortened(record.get(by))}; it must be 0 or 1")
    first, second = _NUMBERED if record[by] == 0 else _NUMBERED[::-1]
    named = {keys.chosen: first, keys.rejected: second}
    named |= {keys.chosen_safe: f"is_{first}_safe", keys.rejected_safe: f"is_{second}_safe"}
    return {**record, **{key: record.get(name) for key, name in named.items()}}
