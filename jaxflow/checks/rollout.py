"""What in the way responses are sampled cannot be. Knows the keys of `rollout` alone, and how many tokens there are."""

from __future__ import annotations

from collections.abc import Iterator

from jaxflow.config import Config

# Every byte of a stop string is a state of the table that notices it: a row of the vocabulary on each device.
_STOP_BYTES = 1024


def rollout_problems(config: Config, vocabulary_size: int | None) -> Iterator[str]:
    """Say what can end no response, or not in time; `vocabulary_size` is None while it is not known."""
    rollout = config.rollout
    if rollout.min_response_tokens >= rollout.max_response_tokens:
        yield (
            f"rollout.min_response_tokens = {rollout.min_response_tokens} leaves no token of"
            f" rollout.max_response_tokens ({rollout.max_response_tokens}) that could end a response; lower it, or set"
            " rollout.ignore_end_token to generate to the limit"
        )
    for token in rollout.stop_token_ids:
        if token < 0 or (vocabulary_size is not None and token >= vocabulary_size):
            known = "" if vocabulary_size is None else f": the tokenizer's ids are 0 to {vocabulary_size - 1}"
            yield f"rollout.stop_token_ids: there is no token {token}{known}"
    if "" in rollout.stop_strings:
        yield "rollout.stop_strings: an empty string ends every response at its first token; take it out"
    size = sum(len(string.encode()) for string in rollout.stop_strings)
    if size > _STOP_BYTES:
        yield (
            f"rollout.stop_strings have {size} bytes, and each costs a row of the vocabulary on every device; keep them"
            f" to {_STOP_BYTES}, or end responses with rollout.stop_token_ids"
        )
    if "\ufffd" in "".join(rollout.stop_strings):
        yield (
            "rollout.stop_strings: U+FFFD stands for bytes that are no character, which no string can be compared with;"
            " take it out"
        )
