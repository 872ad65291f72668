"""An objective of the user's: a function in a file, in place of a built-in one. Knows no config and no model."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow.algorithms.objectives import ClipIndicators, Objective, policy_ratio
from jaxflow.types import UserError
from jaxflow.user_code import load_from_file

TokenLosses = Callable[
    [Float[Array, "B T"], Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]], Float[Array, "B T"]
]
"""(log_probs, old_log_probs, advantages, mask) -> the loss of each token, to be minimised."""


def load_objective(place: str) -> Objective:
    """Return the objective whose token losses "path.py:name" of a user's file computes; it clips nothing.

    Raises:
      UserError: the file or the function is missing, running the file fails (the line is named), or it cannot be
        called as `TokenLosses`.
    """
    function = load_from_file(place, "algorithm.objective", "objective")
    if not callable(function):
        raise UserError(f"algorithm.objective: {place} is a {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind(None, None, None, None)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"algorithm.objective: {place} cannot be called with (log_probs, old_log_probs, advantages, mask): {error}"
        ) from error
    return _without_clip(function, place)


def _without_clip(function: TokenLosses, place: str) -> Objective:
    def objective(log_probs, old_log_probs, advantages, mask):
        losses = function(log_probs, old_log_probs, advantages, mask)
        if jnp.shape(losses) != log_probs.shape:
            raise UserError(
                f"algorithm.objective: {place} must return the loss of each token, {log_probs.shape}, and returned"
                f" {jnp.shape(losses)}; aggregation follows by algorithm.loss_aggregation"
            )
        unclipped = jnp.zeros(losses.shape, bool)
        return losses, ClipIndicators(policy_ratio(log_probs, old_log_probs), unclipped, unclipped)

    return objective
