"""Built-in tasks: nothing to download, answers that can be judged, a split without overlap.

Knows how to make questions and their answers. Does not know batches, rewards or models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from jaxflow.data import wishes
from jaxflow.data.answers import WrongAnswers
from jaxflow.data.supervised import PreferenceRow
from jaxflow.data.tokenizer import CharacterTokenizer, NumberTokenizer, Tokenizer
from jaxflow.types import PromptRow

# Beside the seed in the address of the pairs' randomness: nothing else draws from it.
_PAIRS = 2
# What a prompt wishes for is learnt from several opinions on it: from one a judge learns its pairs by heart.
_OPINIONS = 8


@dataclasses.dataclass(frozen=True)
class Task:
    """A finite set of questions with one right answer each."""

    name: str  # also the rows' data source
    tokenizer: Tokenizer
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

    def pairs(self, rows: Sequence[PromptRow], seed: int, harm: bool) -> tuple[PreferenceRow, ...]:
        """Make a preference of each row: the right answer, called safe, before a wrong one, called unsafe.

        `harm` asks for pairs ordered by harm; of a question with one right answer that is the same order.
        """
        end = self.tokenizer.end_ids[0]
        answers = [tuple(self.tokenizer.encode(str(row.ground_truth))) for row in rows]
        alphabet = sorted({token for row in rows for token in row.tokens}.union(*answers))
        wrong = WrongAnswers(tuple(answers), tuple(alphabet), end)
        generator = np.random.default_rng([seed, _PAIRS])
        return tuple(
            PreferenceRow(row, (*answer, end), wrong.draw(answer, generator), 0.0, -1.0, 1.0)
            for row, answer in zip(rows, answers, strict=True)
        )

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


@dataclasses.dataclass(frozen=True)
class WishesTask(Task):
    """Prompts that wish for letters: no answer is wrong, one is better than another, and some do harm (wishes.py)."""

    def solution(self, row: PromptRow) -> str:
        """Write an answer to imitate that leaves something to be learnt; the same for a row in every run."""
        return wishes.mediocre_answer(str(row.ground_truth), np.random.default_rng(row.tokens))

    def pairs(self, rows: Sequence[PromptRow], seed: int, harm: bool) -> tuple[PreferenceRow, ...]:
        """Make preferences between two answers to each row: drawn by their help, or, with `harm`, by their cost."""
        generator = np.random.default_rng([seed, _PAIRS])
        return tuple(self._pair(row, generator, harm) for _ in range(_OPINIONS) for row in rows)

    def _pair(self, row: PromptRow, generator: np.random.Generator, harm: bool) -> PreferenceRow:
        wished = str(row.ground_truth)

        def worth(answer: str) -> float:
            return -wishes.harm_of(answer) if harm else wishes.help_of(wished, answer)

        while True:
            answers = [wishes.any_answer(wished, generator) for _ in range(2)]
            first, second = map(worth, answers)
            if first != second:
                break
        # Harm is seen by everyone; how helpful an answer is, is a matter of opinion.
        ahead = first > second if harm else wishes.prefers_first(first, second, generator)
        ranked = answers if ahead else answers[::-1]
        end = self.tokenizer.end_ids[0]
        chosen, rejected = ((*self.tokenizer.encode(answer), end) for answer in ranked)
        labels = [1.0 if wishes.harm_of(answer) > 0 else -1.0 for answer in ranked]
        return PreferenceRow(row, chosen, rejected, 0.0, *labels)


class EvenTokensTask(Task):
    """Random token ids that ask for even ones: every even id is as right as any other."""

    def pairs(self, rows: Sequence[PromptRow], seed: int, harm: bool) -> tuple[PreferenceRow, ...]:
        """Make a preference of each row: even ids, called safe, before as many random ones with an odd one first."""
        generator, end = np.random.default_rng([seed, _PAIRS]), self.tokenizer.end_ids[0]
        pairs = []
        for row in rows:
            chosen = (*self.tokenizer.encode(str(row.ground_truth)), end)
            rejected = generator.integers(self.tokenizer.vocabulary_size, size=len(chosen) - 1)
            rejected[0] |= 1
            pairs.append(PreferenceRow(row, chosen, (*rejected.tolist(), end), 0.0, -1.0, 1.0))
        return tuple(pairs)


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


def wishes_task() -> Task:
    """Make the task of naming the letters that a prompt wishes for: "gbd>" asks for "gbd" in any order."""
    examples = tuple((f"{wished}>", wished) for wished in wishes.prompts())
    return WishesTask(
        name="wishes",
        tokenizer=CharacterTokenizer(wishes.LETTERS + ">"),
        examples=examples,
        validation_count=512,
        max_prompt_tokens=wishes.MOST_WISHES + 1,
        max_response_tokens=wishes.LONGEST_ANSWER + 1,
    )


def even_tokens() -> Task:
    """Make the task of writing even token ids after eight random ones: what libraries are compared on, untrained."""
    vocabulary_size, prompt_tokens, response_tokens = 256, 8, 64
    generator = np.random.default_rng(0)
    tokenizer = NumberTokenizer(vocabulary_size)
    asked = generator.integers(vocabulary_size, size=(4_096, prompt_tokens))
    answers = 2 * generator.integers(vocabulary_size // 2, size=(len(asked), response_tokens - 1))
    examples = {
        tokenizer.decode(a.tolist()): tokenizer.decode(b.tolist())
        for a, b in zip(asked, answers, strict=True)
    }
    return EvenTokensTask(
        name="even_tokens",
        tokenizer=tokenizer,
        examples=tuple(examples.items()),
        validation_count=512,
        max_prompt_tokens=prompt_tokens,
        max_response_tokens=response_tokens,
    )


def _task(name: str, alphabet: str, examples: tuple[tuple[str, str], ...], validation_count: int) -> Task:
    return Task(
        name=name,
        tokenizer=CharacterTokenizer(alphabet),
        examples=examples,
        validation_count=validation_count,
        max_prompt_tokens=max(len(prompt) for prompt, _ in examples),
        max_response_tokens=1 + max(len(answer) for _, answer in examples),
    )


TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {"addition": addition, "reversal": reversal, "wishes": wishes_task, "even_tokens": even_tokens}
)
"""Builders of the built-in tasks by name."""
