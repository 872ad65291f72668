"""Importance weights and rejection: what is done about data that was sampled by another distribution.

Knows log-probs of sampled tokens, no objective and no sampler. π_old is the distribution that the objective's ratio
is taken against, μ the one that sampled; both at the sampling temperature, before top-k or top-p cut anything.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow import types
from jaxflow.algorithms.masked import on_mask, row_means

LEVELS = ("token", "sequence", "geometric")
BOUNDS = ("truncate", "mask")

# Nats; exp(±20) is as far from 1 as any bound can want, and finite.
_LARGEST_LOG_RATIO = 20.0


def importance_ratio(
    old_log_probs: Float[Array, "B T"],
    sampler_log_probs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    level: str,
) -> Float[Array, "B T"]:
    """Return π_old / μ at each response token, and 1 off the mask.

    With d_t = log π_old − log μ:
      token      exp(d_t)             corrects each token's choice (AReaL, arXiv:2505.24298)
      sequence   exp(Σ_t d_t)         unbiased for whole responses, variance grows with length
      geometric  exp(⟨d_t⟩)           its T-th root: biased, comparable between lengths

    Note: the exponent is clamped to ±20.

    Raises:
      UserError: unknown level.
    """
    chex.assert_rank([old_log_probs, sampler_log_probs, mask], 2)
    chex.assert_equal_shape([old_log_probs, sampler_log_probs, mask])
    chex.assert_type([old_log_probs, sampler_log_probs], float)
    difference = on_mask(old_log_probs, mask) - on_mask(sampler_log_probs, mask)
    match level:
        case "token":
            exponent = difference
        case "sequence":
            exponent = jnp.sum(difference, axis=1, keepdims=True)
        case "geometric":
            exponent = row_means(difference, mask)[:, None]
        case _:
            raise types.UserError(f"ratio level '{level}' is unknown: choose one of {', '.join(LEVELS)}")
    bounded = jnp.clip(exponent, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return jnp.exp(on_mask(jnp.broadcast_to(bounded, mask.shape), mask))


def bounded_weights(
    ratio: Float[Array, "B T"], bounds: str, lower: float, upper: float
) -> Float[Array, "B T"]:
    """Return the weights that ratios become within their bounds.

    truncate  min(w, upper)                   TIS: variance is bounded, every token keeps a say
    mask      w where lower ≤ w ≤ upper, 0 elsewhere    IcePop, arXiv:2510.18855

    Note: a token of weight 0 stays in the counts that losses divide by: a step that trusts few of its tokens is a
    small step, not a large one on those few.

    Raises:
      UserError: unknown bounds.
    """
    match bounds:
        case "truncate":
            return jnp.minimum(ratio, upper)
        case "mask":
            return jnp.where((ratio >= lower) & (ratio <= upper), ratio, 0.0)
    raise types.UserError(f"bounds '{bounds}' are unknown: choose one of {', '.join(BOUNDS)}")


def accepted(ratio: Float[Array, "B T"], lower: float, upper: float) -> Bool[Array, "B T"]:
    """Return where a ratio is within the bounds: rejection leaves the weight of the others at 0, of these as it is.

    With ratios of a whole sequence, whole sequences are rejected.
    """
    return (ratio >= lower) & (ratio <= upper)


def off_policy_sequences(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    bound: float,
) -> Bool[Array, "B"]:
    """Return the sequences to drop: mean advantage below 0 and ⟨log π_old − log π_θ⟩ above `bound` nats.

    What the policy has moved far away from, it does not learn from being wrong about. DeepSeek-V3.2,
    arXiv:2512.02556.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages, mask])
    drift = row_means(on_mask(old_log_probs, mask) - on_mask(log_probs, mask), mask)
    return (row_means(advantages, mask) < 0) & (drift > bound)
