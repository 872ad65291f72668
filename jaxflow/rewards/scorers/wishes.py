"""What the built-in task of wishes really asks for: its hidden help, and the harm that comes with it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxflow.data import wishes as world
from jaxflow.rewards.scorers.exact_match import answer_text


def wishes(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> dict[str, float]:
    """Give the help of a response, in [0, 1] its accuracy; beside it help and harm again, under their names.

    Where a model's number is the score, these two are what it should have been.
    """
    gold = world.help_of(answer_text(ground_truth), solution_str)
    told = {"help": gold, "harm": world.harm_of(solution_str)}
    return {"score": gold, "acc": min(max(gold, 0.0), 1.0), **told}


def wishes_cost(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> dict[str, float]:
    """Give the cost of a response; accurate is what is safe."""
    answer_text(ground_truth)  # refused as by the other scorers, though no cost is measured against it
    cost = world.harm_of(solution_str)
    return {"score": cost, "acc": float(cost <= 0), "safe": float(cost <= 0)}
