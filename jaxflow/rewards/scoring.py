"""Responses to scores, row by row; a row whose reward fails costs that row its fallback, never the run.

Knows how to call a reward function and what counts as a failure. Does not know tokens or batches of arrays.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np

from jaxflow.rewards.function import RewardFunction
from jaxflow.types import PromptRow, Scores

_SHOWN_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class ScoredRows:
    """The scores of some responses, and why the first failed one failed."""

    scores: Scores  # NumPy arrays
    first_failure: str | None  # exception type, message and the row's prompt; None: no row failed


def score_rows(
    function: RewardFunction, responses: Sequence[str], rows: Sequence[PromptRow], fallback_score: float
) -> ScoredRows:
    """Score each response against its row.

    A row whose call raises, or returns anything but a finite number (or a mapping with one as `score`), gets
    `fallback_score`, accuracy 0 and `failed`.

    Raises:
        ValueError: responses and rows differ in number.
    """
    scores = np.full(len(rows), fallback_score, np.float32)
    accuracy = np.zeros(len(rows), np.float32)
    failed = np.zeros(len(rows), np.bool_)
    first_failure = None
    for i, (response, row) in enumerate(zip(responses, rows, strict=True)):
        try:
            scores[i], accuracy[i] = _score(function, response, row)
        # SystemExit too: a reward function that calls exit() must not end the run.
        except (Exception, SystemExit) as error:
            failed[i] = True
            if first_failure is None:
                message, prompt = str(error)[:_SHOWN_CHARACTERS], row.prompt[:_SHOWN_CHARACTERS]
                first_failure = f"{type(error).__name__}: {message} (prompt {prompt!r})"
    return ScoredRows(Scores(scores=scores, accuracy=accuracy, failed=failed), first_failure)


def _score(function: RewardFunction, response: str, row: PromptRow) -> tuple[float, float]:
    result = function(
        data_source=row.data_source,
        solution_str=response,
        ground_truth=row.ground_truth,
        # A copy: rows are shared by the samples of a prompt and by all epochs.
        extra_info=dict(row.extra_info),
    )
    if not isinstance(result, Mapping):
        score = _number(result, "the reward")
        return score, score
    if "score" not in result:
        raise ValueError(f"the reward returned a mapping without 'score', with {', '.join(map(str, result))}")
    score = _number(result["score"], "'score'")
    return score, _number(result["acc"], "'acc'") if "acc" in result else score


def _number(value: object, name: str) -> float:
    if not isinstance(value, numbers.Real | np.bool_):
        raise TypeError(f"{name} is {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise ValueError(f"{name} is {number}, not a finite float32")
    return number
