"""Which responses count, and for how much: groups that teach nothing, refills of them, weights by score.

Knows scores and groups of responses, no token and no loss.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxflow import types
from jaxflow.algorithms.masked import on_mask

DYNAMIC_SAMPLING_METRICS = ("score", "accuracy")
REWEIGHTINGS = ("pow", "max_min", "max_random")

# PF-PPO's max_random: of the best responses, and of each other one.
_WEIGHT_OF_BEST, _WEIGHT_OF_OTHERS = 0.4, 0.1


def uninformative_groups(measure: Float[np.ndarray, "B"], samples_per_prompt: int) -> Bool[np.ndarray, "P"]:
    """Return which groups have no two different values: their advantages are all 0 under a group baseline.

    DAPO's dynamic sampling, arXiv:2503.14476. The B rows lie prompt by prompt, `samples_per_prompt` in a run.
    """
    groups = np.asarray(measure).reshape(-1, samples_per_prompt)
    return np.all(groups == groups[:, :1], axis=1)


def refilled_rows(
    held: Bool[np.ndarray, "P"], more: Bool[np.ndarray, "P"], samples_per_prompt: int
) -> Int[np.ndarray, "B"]:
    """Return where each row of a refilled batch comes from: b of the batch held, B + b of the one more.

    The k-th uninformative group of the batch held is replaced by the k-th informative group of the other, as long
    as there are both; everything else stays. A function of the two flags alone, so that every process decides alike.

    Args:
      held: the uninformative groups of the batch held.
      more: the uninformative groups of the further batch, of as many groups.
      samples_per_prompt: rows of a group.
    """
    wanting, offered = np.flatnonzero(held), np.flatnonzero(~more)
    count = min(len(wanting), len(offered))
    source = np.arange(len(held))
    source[wanting[:count]] = len(held) + offered[:count]
    return (source[:, None] * samples_per_prompt + np.arange(samples_per_prompt)).reshape(-1)


def score_weights(
    scores: Float[Array, "B"], present: Bool[Array, "B"], method: str, power: float
) -> Float[Array, "B"]:
    """Return how much each response counts: N·p_b, for N responses resampled with probabilities p.

    pow         p ∝ |score|^power
    max_min     p ∝ 1 for the best and the worst score, 0 in between
    max_random  p ∝ 0.4 for the best score, 0.1 for the others

    PF-PPO, arXiv:2409.06957, draws N responses with replacement; these are the expected numbers of draws, so the
    loss is the expectation of PF-PPO's over the draw, without its noise. Where all weights are 0 they become 1.

    Args:
      scores: one per response.
      present: responses with at least one token; the others weigh 0.
      method: one of REWEIGHTINGS, static under jit.
      power: read by pow alone.

    Raises:
      UserError: unknown method.
    """
    chex.assert_rank([scores, present], 1)
    best = jnp.max(jnp.where(present, scores, -jnp.inf))
    worst = jnp.min(jnp.where(present, scores, jnp.inf))
    match method:
        case "pow":
            # Divided by the largest first: powers of large scores would overflow.
            largest = jnp.max(jnp.abs(on_mask(scores, present)))
            weights = (jnp.abs(scores) / jnp.where(largest > 0, largest, 1.0)) ** power
        case "max_min":
            weights = ((scores == best) | (scores == worst)).astype(scores.dtype)
        case "max_random":
            weights = jnp.where(scores == best, _WEIGHT_OF_BEST, _WEIGHT_OF_OTHERS)
        case _:
            raise types.UserError(
                f"reweighting '{method}' is unknown: choose one of {', '.join(REWEIGHTINGS)}"
            )
    weights, count = on_mask(weights, present), jnp.sum(present)
    total = jnp.sum(weights)
    return jnp.where(
        total > 0,
        weights * count / jnp.where(total > 0, total, 1.0),
        on_mask(jnp.ones_like(weights), present),
    )
