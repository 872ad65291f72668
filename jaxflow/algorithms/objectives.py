"""PPO's objective and its value loss, per token, as losses to minimise; and the names of all objectives.

Knows no mask and no batch: what is averaged, and over what, is `aggregate`'s business. The objectives that take
PPO's place are in `token_objectives.py` and `sequence_objectives.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow import types

OBJECTIVES = (
    "vanilla",
    "gspo",
    "gspo_token",
    "cispo",
    "geo_mean",
    "sapo",
    "dppo_tv",
    "dppo_kl",
    "clip_cov",
    "kl_cov",
    "gpg",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClipIndicators:
    """What the clipped objective did at each token."""

    ratio: Float[Array, "B T"]  # π_θ / π_old
    clipped: Bool[Array, "B T"]  # the ratio's clip decides the loss
    clipped_lower: Bool[Array, "B T"]  # the dual clip decides the loss


Objective = Callable[
    [Float[Array, "B T"], Float[Array, "B T"], Float[Array, "B T"], Bool[Array, "B T"]],
    tuple[Float[Array, "B T"], ClipIndicators],
]
"""(log_probs, old_log_probs, advantages, mask) -> (loss of each token, what happened there)."""


def by_token(objective: Callable[..., tuple[Float[Array, "B T"], ClipIndicators]], **knobs: Any) -> Objective:
    """Return an objective that looks at each token alone, with its knobs, under the signature of all."""

    def with_mask(log_probs, old_log_probs, advantages, mask):
        """Take the mask and leave it unread."""
        return objective(log_probs, old_log_probs, advantages, **knobs)

    return with_mask


def policy_ratio(log_probs: Float[Array, "B T"], old_log_probs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Return r = π_θ / π_old, the log-ratio clamped to ±20: finite, and without a gradient beyond."""
    chex.assert_rank([log_probs, old_log_probs], 2)
    chex.assert_equal_shape([log_probs, old_log_probs])
    chex.assert_type([log_probs, old_log_probs], float)
    return jnp.exp(jnp.clip(log_probs - old_log_probs, -20.0, 20.0))


def clipped_objective(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    clip_ratio_low: float,
    clip_ratio_high: float,
    dual_clip: float,
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return PPO's clipped loss of each token, and what was clipped.

    L_t = −min(r_t·Â_t, clip(r_t, 1 − ε_low, 1 + ε_high)·Â_t),  r_t = exp(log π_θ − log π_old);
    where Â_t < 0 and c > 0:  L_t = min(L_t, −c·Â_t).

    Note: the log-ratio is clamped to ±20 so that r_t stays finite; beyond it a token has no gradient.

    Schulman et al., arXiv:1707.06347; the dual clip, Ye et al., arXiv:1912.09729.

    Args:
      log_probs: under π_θ, the policy in training.
      old_log_probs: under π_old, the policy that the ratio is taken against.
      advantages: Â, constants.
      clip_ratio_low: ε_low.
      clip_ratio_high: ε_high.
      dual_clip: c > 1, static under jit; 0.0: off.

    Raises:
      UserError: a dual clip that is neither off nor above 1 (it would reverse the clip at ratio 1).
    """
    chex.assert_rank([log_probs, old_log_probs, advantages], 2)
    chex.assert_equal_shape([log_probs, old_log_probs, advantages])
    chex.assert_type([log_probs, old_log_probs, advantages], float)
    if dual_clip != 0.0 and dual_clip <= 1.0:
        raise types.UserError(f"dual_clip is {dual_clip}: it must be above 1, or 0.0 to switch it off")
    ratio = policy_ratio(log_probs, old_log_probs)
    plain = -advantages * ratio
    bounded = -advantages * jnp.clip(ratio, 1.0 - clip_ratio_low, 1.0 + clip_ratio_high)
    losses = jnp.maximum(plain, bounded)
    clipped_lower = jnp.zeros_like(losses, dtype=bool)
    if dual_clip != 0.0:
        ceiling = -dual_clip * advantages
        clipped_lower = (advantages < 0) & (losses > ceiling)
        losses = jnp.where(clipped_lower, ceiling, losses)
    return losses, ClipIndicators(ratio=ratio, clipped=bounded > plain, clipped_lower=clipped_lower)


def clipped_value_loss(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    value_clip: float,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Return the critic's loss at each token, and where the clip decides it.

    L_t = ½·max((V − G)², (clip(V, V_old − ε, V_old + ε) − G)²).

    The clip is PPO2's practice (measured in arXiv:2005.12729): moving V by more than ε gains nothing.

    Args:
      values: V, of the critic in training.
      old_values: V_old, before its update.
      returns: G, the target.
      value_clip: ε, static under jit; 0.0: off.
    """
    chex.assert_rank([values, old_values, returns], 2)
    chex.assert_equal_shape([values, old_values, returns])
    chex.assert_type([values, old_values, returns], float)
    plain = jnp.square(values - returns)
    if value_clip == 0.0:
        return plain / 2, jnp.zeros_like(plain, dtype=bool)
    bounded = jnp.square(jnp.clip(values, old_values - value_clip, old_values + value_clip) - returns)
    return jnp.maximum(plain, bounded) / 2, bounded > plain
