"""Rows to padded batches, by step: the data position is the step, so there is nothing to save or resume.

Knows orders and padding. Does not know files, devices or models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import grain
import numpy as np

from jaxflow.data.answers import WrongAnswers
from jaxflow.data.tokenizer import Tokenizer
from jaxflow.types import Demonstrations, Judgements, PromptRow, Prompts, UserError

Row = TypeVar("Row")

# Beside the seed and the step in the address of the wrong answers' randomness: nothing else draws from it.
_WRONG_ANSWERS = 1
# Added to the seed of the order in which further prompts come: they are others than the step's own.
_FURTHER_PROMPTS = 1


class PromptBatches:
    """The prompts of every step of a run, in any order of asking."""

    def __init__(
        self,
        rows: Sequence[PromptRow],
        prompts_per_step: int,
        samples_per_prompt: int,
        shuffle: bool,
        seed: int,
        pad_multiple: int,
    ) -> None:
        """Lay out the run's prompts; with `shuffle` each epoch is a new permutation of the rows.

        Raises:
            UserError: there are fewer rows than one step takes.
        """
        if len(rows) < prompts_per_step:
            raise UserError(
                f"{len(rows):,} prompt rows are fewer than the {prompts_per_step:,} of one step; "
                "lower data.prompts_per_step or add rows"
            )
        self._batches = endless_batches(rows, prompts_per_step, shuffle, seed)
        self._further = endless_batches(rows, prompts_per_step, shuffle, seed + _FURTHER_PROMPTS)
        self._samples_per_prompt = samples_per_prompt
        self._pad_multiple = pad_multiple

    def at(self, step: int) -> Prompts:
        """Give the prompts of `step` (from 0): each `samples_per_prompt` times in a row, one group."""
        return _prompts(self._batches[step], self._samples_per_prompt, self._pad_multiple, step)

    def further(self, step: int, refill: int, refills_per_step: int) -> Prompts:
        """Give the prompts of one refill (from 0) of `step`, as many as the step's own.

        They come from an order of their own, so that what a step draws moves no other step's prompts; their sequence
        ids go on where those of the step's batches before end.
        """
        batch = self._further[step * refills_per_step + refill]
        prompts = _prompts(batch, self._samples_per_prompt, self._pad_multiple, step)
        before = (1 + refill) * len(prompts.sequence_ids)
        return dataclasses.replace(prompts, sequence_ids=prompts.sequence_ids + np.int32(before))


class DemonstrationBatches:
    """Solved rows to imitate, for every warm-start step; one shape, so that one program serves all steps."""

    def __init__(
        self,
        rows: Sequence[PromptRow],
        solution: Callable[[PromptRow], str],
        tokenizer: Tokenizer,
        sequences_per_step: int,
        seed: int,
    ) -> None:
        ends = tokenizer.end_ids[:1]
        answers = [(*tokenizer.encode(solution(row)), *ends) for row in rows]
        pairs = [(row.tokens, answer) for row, answer in zip(rows, answers, strict=True)]
        self._batches = endless_batches(pairs, sequences_per_step, True, seed)
        self._width = max(len(prompt) + len(answer) for prompt, answer in pairs)

    def at(self, step: int) -> Demonstrations:
        """Give the demonstrations of `step` (from 0): prompt, solution and end, the mask on the latter."""
        tokens, lengths, response_mask = answered(self._batches[step], self._width)
        return Demonstrations(tokens=tokens, lengths=lengths, response_mask=response_mask)


class JudgementBatches:
    """Answers to judge, for every step of a verifier: each question with its right answer, then with a wrong one.

    Side by side in one batch, the two cancel what the question and its length add to the gradient, and leave the
    mistake. One shape, so that one program serves all steps.
    """

    def __init__(
        self,
        rows: Sequence[PromptRow],
        solution: Callable[[PromptRow], str],
        tokenizer: Tokenizer,
        sequences_per_step: int,
        seed: int,
    ) -> None:
        """Lay out the rows' questions and the mistakes that can be made in answering them.

        Raises:
            UserError: a solution is empty, and so leaves no room for mistakes.
        """
        answers = tuple(tuple(tokenizer.encode(solution(row))) for row in rows)
        for row, answer in zip(rows, answers, strict=True):
            if not answer:
                raise UserError(
                    f"the solution of prompt {row.prompt!r} is empty: no wrong answers can be made from it; "
                    "leave the row out"
                )
        questions = [(row.tokens, answer) for row, answer in zip(rows, answers, strict=True)]
        known = {token for prompt, answer in questions for token in prompt + answer}
        self._batches = endless_batches(questions, -(-sequences_per_step // 2), True, seed)
        self._sequences, self._seed, self._end = sequences_per_step, seed, tokenizer.end_ids[0]
        self._wrong = WrongAnswers(answers, tuple(sorted(known)), self._end)
        # A mistake adds one token at the most, and so does the end.
        self._width = max(len(prompt) for prompt, _ in questions) + max(len(answer) for answer in answers) + 2

    def at(self, step: int) -> Judgements:
        """Give the judgements of `step` (from 0), the wrong answers drawn under seed and step."""
        generator = np.random.default_rng([self._seed, step, _WRONG_ANSWERS])
        judged: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for prompt, answer in self._batches[step]:
            judged += [(prompt, (*answer, self._end)), (prompt, self._wrong.draw(answer, generator))]
        tokens, lengths, response_mask = answered(judged[: self._sequences], self._width)
        labels = (np.arange(self._sequences) % 2 == 0).astype(np.float32)
        return Judgements(tokens=tokens, lengths=lengths, response_mask=response_mask, labels=labels)


def fixed_batch(rows: Sequence[PromptRow], samples_per_prompt: int, pad_multiple: int, step: int) -> Prompts:
    """Make one batch of all rows in their order, each `samples_per_prompt` times in a row: validation at `step`."""
    return _prompts(rows, samples_per_prompt, pad_multiple, step)


def endless_batches(
    rows: Sequence[Row], rows_per_batch: int, shuffle: bool, seed: int
) -> grain.MapDataset[list[Row]]:
    """Order the rows for ever, epoch after epoch; batch k is computed from k alone."""
    rows_in_order = grain.MapDataset.source(rows).seed(seed)
    if shuffle:
        rows_in_order = rows_in_order.shuffle()
    # Repeated before it is cut: a batch may span two epochs, and no row is left out of either.
    return rows_in_order.repeat().batch(rows_per_batch, batch_fn=list)


def _prompts(rows: Sequence[PromptRow], samples_per_prompt: int, pad_multiple: int, step: int) -> Prompts:
    repeated = tuple(row for row in rows for _ in range(samples_per_prompt))
    longest = max(len(row.tokens) for row in repeated)
    width = -(-longest // pad_multiple) * pad_multiple
    tokens, lengths = _padded([row.tokens for row in repeated], width)
    seeds = [row.seed + g if row.seed >= 0 else -1 for row in rows for g in range(samples_per_prompt)]
    return Prompts(
        tokens=tokens,
        lengths=lengths,
        sequence_ids=np.arange(len(repeated), dtype=np.int32),
        own_seeds=np.array(seeds, dtype=np.int32),
        groups=np.repeat(np.arange(len(rows), dtype=np.int32), samples_per_prompt),
        step=step,
        rows=repeated,
    )


def answered(
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put prompts and responses into rows [B, width]; also give lengths [B] and the mask [B, width] of responses."""
    tokens, lengths = _padded([prompt + response for prompt, response in pairs], width)
    starts = np.array([len(prompt) for prompt, _ in pairs])
    positions = np.arange(width)
    return tokens, lengths, (positions >= starts[:, None]) & (positions < lengths[:, None])


def _padded(sequences: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad to [B, width] with zeros, which are never read; also give the lengths [B]."""
    tokens = np.zeros((len(sequences), width), dtype=np.int32)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, np.array([len(sequence) for sequence in sequences], dtype=np.int32)
