"""The reward function: verl's `compute_score` signature, a file of the user's that has one, the built-in one.

Knows what a reward function looks like. Does not know batches, and does not call what it finds.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Protocol

from jaxflow.types import UserError
from jaxflow.user_code import load_from_file


class RewardFunction(Protocol):
    """Scores one response; the arguments are passed by name."""

    def __call__(
        self, *, data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object]
    ) -> float | Mapping[str, object]:
        """Give a finite score, or a mapping with `score` and, if it differs, `acc`: the share solved."""


def exact_match(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> float:
    """Give 1 if the response is the ground truth up to surrounding white space, else 0.

    Raises:
        TypeError: the ground truth is neither text nor a number.
    """
    if not isinstance(ground_truth, str | int | float):
        raise TypeError(
            f"exact_match needs text or a number as ground truth, not {type(ground_truth).__name__}"
        )
    return float(solution_str.strip() == str(ground_truth).strip())


def load_reward_function(place: str) -> RewardFunction:
    """Import the function that "path.py:function" names.

    Raises:
        UserError: the file or the function is missing, importing it fails (the line is named), or it cannot
            be called as a `RewardFunction`.
    """
    function = load_from_file(place, "reward.function", "reward")
    file, _, name = place.rpartition(":")
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise UserError(f"{file}: {name!r} is not a plain function; it must return the score when called")
    try:
        inspect.signature(function).bind(data_source="", solution_str="", ground_truth="", extra_info={})
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{file}: {name!r} cannot be called as {name}(data_source=…, solution_str=…, ground_truth=…, "
            f"extra_info=…): {error}"
        ) from error
    return function
