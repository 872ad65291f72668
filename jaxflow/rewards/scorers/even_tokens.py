"""The share of even token ids in a response: a reward that an untrained model has something of."""

from __future__ import annotations

from collections.abc import Mapping

from jaxflow.rewards.scorers.exact_match import answer_text


def even_tokens(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> float:
    """Give the share of even ids among those that the text lists in digits; 0 where it lists none.

    Raises:
        ValueError: a word of the text is no whole number.
        TypeError: the ground truth is neither text nor a number.
    """
    answer_text(ground_truth)  # refused as by the other scorers, though nothing is measured against it
    ids = [int(word) for word in solution_str.split()]
    return sum(number % 2 == 0 for number in ids) / len(ids) if ids else 0.0
