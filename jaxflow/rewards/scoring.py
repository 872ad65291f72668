"""Responses to scores; a row without a verdict costs that row its fallback, never the run.

Knows rows and the arrays of their scores. Does not know tokens, nor how a verdict is come by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from jaxflow.rewards.verdict import Case, Failure, Judge
from jaxflow.types import PromptRow, Scores

# A failure's reason as a number, so that rows of several processes can be counted together; 0 is none.
REASONS = ("error", "timeout", "crash")
_SHOWN_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class ScoredRows:
    """The scores of some responses, and what else was said of them."""

    scores: Scores  # NumPy arrays
    reasons: Int[np.ndarray, "B"]  # int32: 0, or 1 + the place in REASONS of why the row failed
    numbers: tuple[Mapping[str, float], ...]  # further numbers of each row, by name; none of a failed row
    predictions: tuple[str | None, ...]  # the answer read in each response, where the function told one
    first_failure: str | None  # what happened, and the row's prompt; None: no row failed


def score_rows(
    judge: Judge, responses: Sequence[str], rows: Sequence[PromptRow], fallback_score: float
) -> ScoredRows:
    """Score each response against its row; one that gets no verdict has `fallback_score`, accuracy 0 and `failed`.

    Raises:
        ValueError: responses and rows differ in number.
    """
    told = judge.judge(
        [
            Case(row.data_source, response, row.ground_truth, row.extra_info)
            for response, row in zip(responses, rows, strict=True)
        ]
    )
    scores = np.full(len(rows), fallback_score, np.float32)
    accuracy = np.zeros(len(rows), np.float32)
    reasons = np.zeros(len(rows), np.int32)
    numbers: list[Mapping[str, float]] = [{}] * len(rows)
    predictions: list[str | None] = [None] * len(rows)
    first_failure = None
    for i, (verdict, row) in enumerate(zip(told, rows, strict=True)):
        if not isinstance(verdict, Failure):
            scores[i], accuracy[i], numbers[i] = verdict.score, verdict.accuracy, verdict.numbers
            predictions[i] = verdict.prediction
            continue
        reasons[i] = 1 + REASONS.index(verdict.reason)
        if first_failure is None:
            first_failure = f"{verdict.message} (prompt {row.prompt[:_SHOWN_CHARACTERS]!r})"
    failed = reasons > 0
    return ScoredRows(
        Scores(scores, accuracy, failed), reasons, tuple(numbers), tuple(predictions), first_failure
    )
