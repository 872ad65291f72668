"""What each token of a tokenizer says, in bytes: the text of a response is its tokens' bytes, one after another.

Byte-level vocabularies (GPT-2's, Llama 3's, Qwen's) and sentencepiece-like ones (Llama 2's, Gemma's, Mistral's)
are read from the description of their decoder. Knows no stop strings and no model.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxflow.types import UserError

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclasses.dataclass(frozen=True)
class TokenTexts:
    """The bytes of every token id, UTF-8; empty where decoding skips the token."""

    inside: tuple[bytes, ...]  # behind other tokens that say something
    first: tuple[bytes, ...]  # as the first token that says something: sentencepiece drops a space there

    def of(self, vocabulary_size: int) -> TokenTexts:
        """Return the texts of a model's vocabulary, whose tokens behind the tokenizer's say nothing."""
        silent = (b"",) * (vocabulary_size - len(self.inside))
        return TokenTexts(self.inside + silent, self.first + silent)


def character_texts(characters: str, first_id: int) -> TokenTexts:
    """Return the texts of tokens that are one character each, behind `first_id` that say nothing."""
    texts = (b"",) * first_id + tuple(character.encode() for character in characters)
    return TokenTexts(texts, texts)


def decoder_texts(description: str, vocabulary: Mapping[str, int], skipped: Sequence[int]) -> TokenTexts:
    """Return the texts of a tokenizer's vocabulary from the JSON that describes it (`tokenizers`' own format).

    Args:
        description: the whole tokenizer, as `Tokenizer.to_str()` writes it.
        vocabulary: every token and its id.
        skipped: ids of special tokens, which decoding leaves out.

    Raises:
        UserError: the decoder does more than put the tokens' bytes one after another.
    """
    steps = list(_steps(json.loads(description)["decoder"]))
    spell: Callable[[str], bytes] = str.encode
    replacements: list[tuple[str, str]] = []
    start = None
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel":
            spell = _from_byte_level
        elif kind == "ByteFallback":
            spell = _from_byte_token
        elif kind == "Metaspace":
            replacements.append((step["replacement"], " "))
            start = "all" if step["prepend_scheme"] != "never" else None
        elif kind == "Replace" and "String" in step["pattern"]:
            replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "Strip" and step["content"] == " " and step["stop"] == 0:
            start = step["start"]
        elif kind != "Fuse":
            raise UserError(
                f"rollout.stop_strings: this tokenizer's decoder has a step {kind}, behind which a token's text"
                " depends on its neighbours; end responses with rollout.stop_token_ids"
            )
    size = 1 + max(vocabulary.values())
    inside = [b""] * size
    for token, index in vocabulary.items():
        for old, new in replacements:
            token = token.replace(old, new)
        inside[index] = spell(token)
    for index in skipped:
        inside[index] = b""
    return TokenTexts(tuple(inside), tuple(_without_start(text, start) for text in inside))


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        raise UserError(
            "rollout.stop_strings: this tokenizer has no decoder, so that its tokens have no text of their own; end"
            " responses with rollout.stop_token_ids"
        )
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _steps(step)


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for (GPT-2's table).

    Printable characters of Latin-1 stand for themselves; the other bytes, in order, for those from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()


def _from_byte_level(token: str) -> bytes:
    if all(character in _BYTE_LEVEL for character in token):
        return bytes(_BYTE_LEVEL[character] for character in token)
    return token.encode()  # an added token, written as it is


def _from_byte_token(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match.group(1), 16)]) if match else token.encode()


def _without_start(text: bytes, spaces: int | str | None) -> bytes:
    """Drop spaces at a text's start: all, at most so many, or none."""
    if spaces is None:
        return text
    kept = text.lstrip(b" ")
    return kept if spaces == "all" else text[min(spaces, len(text) - len(kept)) :]
