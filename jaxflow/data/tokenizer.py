"""Text to token ids and back.

Knows characters and Hugging Face tokenizer directories on this machine's disk. Does not know rows, batches or
models, downloads nothing and runs no code that comes with a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxflow.data.token_texts import TokenTexts, character_texts, decoder_texts
from jaxflow.types import UserError

Messages = Sequence[Mapping[str, str]]
"""A chat: messages of a `role` and a `content`, oldest first."""

# A private-use character, so that no template gives it a meaning.
_MARK = "\ue000"


class Tokenizer(Protocol):
    """What the rest of the house asks of a tokenizer."""

    @property
    def vocabulary_size(self) -> int:
        """Count the token ids: every id is below it."""

    @property
    def pad_id(self) -> int:
        """Name the token that fills rows; never read."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Name the tokens that end a response, the usual one first."""

    @property
    def identity(self) -> str:
        """Name the vocabulary: two tokenizers with one identity give the same ids."""

    def encode(self, text: str) -> list[int]:
        """Encode plain text; what looks like a special token in it is text too."""

    def encode_prompt(self, prompt: str | Messages) -> list[int]:
        """Encode a prompt as the model expects one to start, ready to be answered."""

    def render_chat(self, messages: Messages) -> str:
        """Render a chat to the text that the model is shown."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode token ids; special tokens are skipped."""

    def token_texts(self) -> TokenTexts:
        """Say what each token stands for in a decoded response; `UserError` where that depends on its neighbours."""


class CharacterTokenizer:
    """Gives every character of an alphabet its own token: 0 pads, 1 ends, then the alphabet in order."""

    pad_id = 0
    end_ids = (1,)

    def __init__(self, alphabet: str) -> None:
        if len(set(alphabet)) != len(alphabet):
            raise UserError(f"alphabet {alphabet!r} repeats a character; list each once")
        self._characters = alphabet
        self._first_id = 1 + max(self.pad_id, *self.end_ids)
        self._ids = {character: self._first_id + i for i, character in enumerate(alphabet)}
        self.vocabulary_size = self._first_id + len(alphabet)
        self.identity = f"characters:{alphabet}"

    def encode(self, text: str) -> list[int]:
        """Encode text by characters.

        Raises:
            UserError: a character is not in the alphabet.
        """
        for character in text:
            if character not in self._ids:
                raise UserError(
                    f"character {character!r} is not in this tokenizer's alphabet {self._characters!r}; "
                    "use its characters alone, or a tokenizer that knows the text"
                )
        return [self._ids[character] for character in text]

    def encode_prompt(self, prompt: str | Messages) -> list[int]:
        """Encode a prompt; nothing is put before it."""
        return self.encode(prompt if isinstance(prompt, str) else self.render_chat(prompt))

    def render_chat(self, messages: Messages) -> str:
        """Join the contents: this alphabet has no roles."""
        return "".join(message["content"] for message in messages)

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode token ids; padding and end tokens are skipped."""
        return "".join(
            self._characters[token - self._first_id] for token in tokens if token >= self._first_id
        )

    def token_texts(self) -> TokenTexts:
        """Say that each token is its character; padding and end tokens are nothing."""
        return character_texts(self._characters, self._first_id)


class NumberTokenizer:
    """Writes every token as its id in digits, 0 and the end token 1 among them: "5 0 17". The text hides nothing."""

    pad_id = 0
    end_ids = (1,)

    def __init__(self, vocabulary_size: int) -> None:
        """Name the ids below `vocabulary_size`."""
        self.vocabulary_size = vocabulary_size
        self.identity = f"numbers:{vocabulary_size}"

    def encode(self, text: str) -> list[int]:
        """Encode ids in digits, white space between them.

        Raises:
            UserError: a word is no id of the vocabulary.
        """
        words = text.split()
        strange = [word for word in words if not word.isdecimal() or int(word) >= self.vocabulary_size]
        if strange:
            raise UserError(f"{strange[0]!r} is no token id from 0 to {self.vocabulary_size - 1}")
        return [int(word) for word in words]

    def encode_prompt(self, prompt: str | Messages) -> list[int]:
        """Encode a prompt; nothing is put before it."""
        return self.encode(prompt if isinstance(prompt, str) else self.render_chat(prompt))

    def render_chat(self, messages: Messages) -> str:
        """Join the contents: numbers have no roles."""
        return " ".join(message["content"] for message in messages)

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode token ids, all of them."""
        return " ".join(map(str, tokens))


class HuggingFaceTokenizer:
    """Wraps a Hugging Face tokenizer directory: local files alone, never its own code."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Load a tokenizer.

        Raises:
            UserError: the directory is missing or unreadable, or names no end token.
        """
        path = pathlib.Path(directory)
        if not path.is_dir():
            raise UserError(f"tokenizer directory {str(path)!r} does not exist; give the path of a directory")
        # transformers announces at import that it found no PyTorch, which nothing here uses.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        import transformers

        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise UserError(f"tokenizer directory {str(path)!r} cannot be loaded: {error}") from error
        self._path = path
        vocabulary = self._tokenizer.get_vocab()
        # The highest id, not the count: vocabularies may have holes.
        self.vocabulary_size = 1 + max(vocabulary.values())
        self.end_ids = _end_ids(path, self._tokenizer.eos_token_id)
        pad_id = self._tokenizer.pad_token_id
        self.pad_id: int = self.end_ids[0] if pad_id is None else pad_id
        listing = json.dumps(sorted(vocabulary.items()), ensure_ascii=True).encode()
        self.identity = f"huggingface:{hashlib.sha256(listing).hexdigest()[:16]}"
        first = self._tokenizer.bos_token_id
        empty = self._tokenizer("", add_special_tokens=True)["input_ids"]
        self._prompt_start = [first] if first is not None and empty[:1] == [first] else []
        special = [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        longest_first = sorted({*special, _MARK}, key=len, reverse=True)
        self._special_text = re.compile("|".join(re.escape(text) for text in longest_first))

    def encode(self, text: str) -> list[int]:
        """Encode plain text; the names of special tokens in it become ordinary tokens."""
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def encode_prompt(self, prompt: str | Messages) -> list[int]:
        """Encode a prompt: text behind the tokenizer's start token (where it has one), or a rendered chat.

        The special tokens that the chat template writes are kept; those in the messages become plain text.

        Raises:
            UserError: the chat template is missing or fails.
        """
        if isinstance(prompt, str):
            return self._prompt_start + self.encode(prompt)
        # Special text in messages travels through the template under marks, and so can be told from the
        # template's own. The text is cut at such places alone: a clean chat is encoded in one piece.
        hidden: list[str] = []

        def hide(match: re.Match[str]) -> str:
            hidden.append(match.group())
            return f"{_MARK}{len(hidden) - 1}{_MARK}"

        marked = [
            {**message, "content": self._special_text.sub(hide, message["content"])} for message in prompt
        ]
        tokens: list[int] = []
        for i, piece in enumerate(re.split(f"{_MARK}([0-9]+){_MARK}", self.render_chat(marked))):
            is_hidden = i % 2 == 1  # re.split puts captured groups at odd places
            if is_hidden:
                tokens += self.encode(hidden[int(piece)])
            else:
                encoding = self._tokenizer(piece, add_special_tokens=False, split_special_tokens=False)
                tokens += encoding["input_ids"]
        return tokens

    def render_chat(self, messages: Messages) -> str:
        """Render a chat with the tokenizer's template, up to where the assistant answers.

        Raises:
            UserError: the chat template is missing or fails.
        """
        try:
            return self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"the chat template of {str(self._path)!r} failed: {reason}") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode token ids; special tokens are skipped."""
        ids = [int(token) for token in tokens]
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def token_texts(self) -> TokenTexts:
        """Say what each token stands for in a decoded response; special tokens are nothing.

        Raises:
            UserError: the tokenizer decodes in a way that a token has no text of its own.
        """
        import transformers

        if not isinstance(self._tokenizer, transformers.PreTrainedTokenizerFast):
            raise UserError(
                f"rollout.stop_strings: the tokenizer in {str(self._path)!r} has no tokenizer.json, which says what"
                " its tokens stand for; end responses with rollout.stop_token_ids"
            )
        description = self._tokenizer.backend_tokenizer.to_str()
        return decoder_texts(description, self._tokenizer.get_vocab(), self._tokenizer.all_special_ids)


def _end_ids(directory: pathlib.Path, end_id: int | None) -> tuple[int, ...]:
    """List the end tokens: the tokenizer's own, then those of generation_config.json beside it.

    Chat models end a turn with another token than a document; only the latter file names both.
    """
    ids = [] if end_id is None else [end_id]
    generation_config = directory / "generation_config.json"
    if generation_config.is_file():
        try:
            more = json.loads(generation_config.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{generation_config} is not a JSON object: {error}") from error
        ids += more if isinstance(more, list) else [] if more is None else [more]
    if not ids:
        raise UserError(
            f"tokenizer directory {str(directory)!r} names no end token, so no response could end; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return tuple(dict.fromkeys(ids))
