"""From per-token losses to one number.

Knows no objective. Every mode divides by the counts of the whole mini-batch, never by what lies in the arrays
at hand: the sum of `aggregate` over micro-batches or devices is its value over the mini-batch.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow import types
from jaxflow.algorithms.masked import masked_sum, row_means

AGGREGATIONS = (
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "seq-mean-token-mean",
)


def aggregate(
    losses: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    mode: str,
    counts: types.Counts,
    length_constant: float,
) -> Float[Array, ""]:
    """Return this micro-batch's share of the aggregated loss.

    With N tokens and M sequences in the mini-batch, n_b tokens in row b, and L = length_constant:
      token-mean               Σ_b Σ_t ℓ / N            tokens weigh the same (DAPO, arXiv:2503.14476)
      token-sum                Σ_b Σ_t ℓ                the step grows with the tokens
      seq-mean-token-sum       Σ_b Σ_t ℓ / M            long rows weigh more
      seq-mean-token-sum-norm  Σ_b Σ_t ℓ / (M · L)      no length bias (Dr.GRPO, arXiv:2503.20783)
      seq-mean-token-mean      Σ_b (Σ_t ℓ / n_b) / M    rows weigh the same (GRPO, arXiv:2402.03300)

    Args:
      losses: per-token losses.
      mask: the tokens that count; rows without any add nothing.
      mode: one of AGGREGATIONS, static under jit.
      counts: of the whole mini-batch, from `count`.
      length_constant: tokens, most a response may have; read by seq-mean-token-sum-norm alone.

    Raises:
      UserError: unknown mode.
    """
    chex.assert_rank(losses, 2)
    chex.assert_type(losses, float)
    match mode:
        case "token-mean":
            return masked_sum(losses, mask) / counts.tokens
        case "token-sum":
            return masked_sum(losses, mask)
        case "seq-mean-token-sum":
            return masked_sum(losses, mask) / counts.sequences
        case "seq-mean-token-mean":
            return jnp.sum(row_means(losses, mask)) / counts.sequences
        case "seq-mean-token-sum-norm":
            return masked_sum(losses, mask) / (counts.sequences * length_constant)
    raise types.UserError(f"loss aggregation '{mode}' is unknown: choose one of {', '.join(AGGREGATIONS)}")
