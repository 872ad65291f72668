"""Built-in verifiable tasks: nothing to download, an answer that is right or wrong, a split without overlap.

Knows how to make questions and their answers. Does not know batches, rewards or models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from jaxflow.data.tokenizer import CharacterTokenizer
from jaxflow.types import PromptRow


@dataclasses.dataclass(frozen=True)
class Task:
    """A finite set of questions with one right answer each."""

    name: str  # also the rows' data source
    tokenizer: CharacterTokenizer
    examples: tuple[tuple[str, str], ...]  # distinct (prompt, answer) pairs
    validation_count: int  # examples held out of training
    max_prompt_tokens: int
    max_response_tokens: int  # end token included

    def train_rows(self, seed: int) -> tuple[PromptRow, ...]:
        """List the rows to train on; with `validation_rows(seed)` they cover the task, without overlap."""
        return self._rows(self._order(seed)[self.validation_count :])

    def validation_rows(self, seed: int) -> tuple[PromptRow, ...]:
        """List the rows held out under `seed`."""
        return self._rows(self._order(seed)[: self.validation_count])

    def solution(self, row: PromptRow) -> str:
        """Write the right answer to one of the task's rows, for imitation."""
        return str(row.ground_truth)

    def _order(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).permutation(len(self.examples))

    def _rows(self, indices: np.ndarray) -> tuple[PromptRow, ...]:
        return tuple(
            PromptRow(
                prompt=prompt,
                tokens=tuple(self.tokenizer.encode(prompt)),
                ground_truth=answer,
                data_source=self.name,
                extra_info={},
            )
            for prompt, answer in (self.examples[i] for i in indices)
        )


def addition() -> Task:
    """Make the task of adding two numbers from 0 to 99: "37+48=" asks for "85"."""
    examples = tuple((f"{a}+{b}=", str(a + b)) for a in range(100) for b in range(100))
    return _task("addition", "0123456789+=", examples, validation_count=512)


def reversal() -> Task:
    """Make the task of writing a word backwards: "bcad>" asks for "dacb"; words have 3 to 6 letters."""
    letters = "abcdef"
    # A seed of its own: the words are the task, the run's seed only splits them.
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 7, size=10_000)
    words = ("".join(generator.choice(list(letters), size=length)) for length in lengths)
    examples = tuple((f"{word}>", word[::-1]) for word in dict.fromkeys(words))
    return _task("reversal", letters + ">", examples, validation_count=512)


def _task(name: str, alphabet: str, examples: tuple[tuple[str, str], ...], validation_count: int) -> Task:
    return Task(
        name=name,
        tokenizer=CharacterTokenizer(alphabet),
        examples=examples,
        validation_count=validation_count,
        max_prompt_tokens=max(len(prompt) for prompt, _ in examples),
        max_response_tokens=1 + max(len(answer) for _, answer in examples),
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType({"addition": addition, "reversal": reversal})
"""Builders of the built-in tasks by name."""
