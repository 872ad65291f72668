"""Objectives whose ratio belongs to a whole response, as losses to minimise.

Each token of a response bears the response's loss, so that `seq-mean-token-mean` is the papers' mean over responses,
and `seq-mean-token-sum` weighs each by its length (as LUSPO does, arXiv:2602.05261). Knows no batch. Arrays are 0
off the mask.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow.algorithms.masked import row_means
from jaxflow.algorithms.objectives import ClipIndicators, clipped_objective


def gspo_objective(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    clip_ratio_low: float,
    clip_ratio_high: float,
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return L = −min(s·Â, clip(s, 1 − ε_low, 1 + ε_high)·Â), s = exp(⟨log π_θ − log π_old⟩) over the response.

    Zheng et al., arXiv:2507.18071; its widths are a thousandth of PPO's (3e-4 and 4e-4), for s is a mean over many
    tokens. An advantage that differs between the tokens of a response counts by its mean.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages, mask])
    log_ratio = row_means(log_probs - old_log_probs, mask)[:, None]
    advantage = row_means(advantages, mask)[:, None]
    zeros = jnp.zeros_like(log_ratio)
    losses, indicators = clipped_objective(log_ratio, zeros, advantage, clip_ratio_low, clip_ratio_high, 0.0)
    spread = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, mask.shape), (losses, indicators))
    return spread[0], spread[1]


def gspo_token_objective(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    clip_ratio_low: float,
    clip_ratio_high: float,
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return GSPO's token form: L_t = −min(s_t·Â_t, clip(s_t, …)·Â_t), s_t = sg(s)·π_θ,t / sg(π_θ,t).

    Its value is the response's ratio, its gradient each token's own, so that advantages may differ between tokens;
    where they do not, value and gradient are those of `gspo_objective`. Zheng et al., arXiv:2507.18071.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages, mask])
    log_ratio = jax.lax.stop_gradient(row_means(log_probs - old_log_probs, mask))[:, None]
    log_ratios = log_ratio + log_probs - jax.lax.stop_gradient(log_probs)
    zeros = jnp.zeros_like(log_ratios)
    return clipped_objective(log_ratios, zeros, advantages, clip_ratio_low, clip_ratio_high, 0.0)


def geometric_mean_objective(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    clip_log_ratio_low: float,
    clip_log_ratio_high: float,
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return GMPO's L = −ŝ·Â, ŝ = exp(⟨d̂_t⟩), with each token's log-ratio clipped on the side Â pushes it to.

    d̂_t = min(d_t, ε_high) where Â > 0, max(d_t, −ε_low) where Â < 0, d_t = log π_θ − log π_old, nats. Â is the mean
    over the response. The geometric mean in the place of GRPO's arithmetic one: outliers weigh less.
    Zhao et al., arXiv:2507.20673 (ε = 0.4 both ways).
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages, mask])
    advantage = row_means(advantages, mask)[:, None]
    difference = jnp.clip(log_probs - old_log_probs, -20.0, 20.0)
    pushed = jnp.where(
        advantage > 0,
        jnp.minimum(difference, clip_log_ratio_high),
        jnp.maximum(difference, -clip_log_ratio_low),
    )
    losses = -advantage * jnp.exp(row_means(pushed, mask))[:, None]
    indicators = ClipIndicators(
        ratio=jnp.exp(difference), clipped=mask & (pushed != difference), clipped_lower=jnp.zeros_like(mask)
    )
    return jnp.broadcast_to(losses, mask.shape), indicators
