"""Objectives that look at each token alone and take PPO's clip's place, as losses to minimise.

Knows no mask and no batch. π_old and the advantages are constants; r = π_θ / π_old, its logarithm clamped to ±20.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow.algorithms.objectives import ClipIndicators, policy_ratio

# Next to 1 in float32: a probability that is 1 leaves the logarithm of what is left finite.
_LARGEST_PROBABILITY = 1.0 - 1e-6


def policy_gradient_objective(
    log_probs: Float[Array, "B T"], old_log_probs: Float[Array, "B T"], advantages: Float[Array, "B T"]
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return L_t = −Â_t·log π_θ: REINFORCE, as GPG uses it (Chu et al., arXiv:2504.02546). Nothing is clipped."""
    ratio = policy_ratio(log_probs, old_log_probs)
    return -advantages * log_probs, _unclipped(ratio)


def ratio_objective(
    log_probs: Float[Array, "B T"], old_log_probs: Float[Array, "B T"], advantages: Float[Array, "B T"]
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return L_t = −r_t·Â_t, unclipped: the objective under KL-Cov's penalty (Cui et al., arXiv:2505.22617)."""
    ratio = policy_ratio(log_probs, old_log_probs)
    return -advantages * ratio, _unclipped(ratio)


def cispo_objective(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    clip_ratio_low: float,
    clip_ratio_high: float,
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return L_t = −sg(clip(r_t, 1 − ε_low, 1 + ε_high))·Â_t·log π_θ: the weight is clipped, no token is dropped.

    MiniMax-M1, arXiv:2506.13585, which sets no lower bound (ε_low = 1).
    """
    ratio = policy_ratio(log_probs, old_log_probs)
    weight = jax.lax.stop_gradient(jnp.clip(ratio, 1.0 - clip_ratio_low, 1.0 + clip_ratio_high))
    nothing = jnp.zeros_like(ratio, dtype=bool)
    return -weight * advantages * log_probs, ClipIndicators(ratio, weight != ratio, nothing)


def sapo_objective(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    temperature_positive: float,
    temperature_negative: float,
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return L_t = −(4/τ)·σ(τ·(r_t − 1))·Â_t: a soft gate, of slope 1 at r = 1, in the clip's place.

    τ is the positive temperature where Â_t > 0 and the negative one elsewhere; a larger τ closes the gate sooner.
    Gao et al., arXiv:2511.20347.
    """
    ratio = policy_ratio(log_probs, old_log_probs)
    temperature = jnp.where(advantages > 0, temperature_positive, temperature_negative)
    gate = 4.0 / temperature * jax.nn.sigmoid(temperature * (ratio - 1.0))
    return -gate * advantages, _unclipped(ratio)


def dppo_objective(
    log_probs: Float[Array, "B T"],
    old_log_probs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    divergence: str,
    bound: float,
    ratio_bound: float,
) -> tuple[Float[Array, "B T"], ClipIndicators]:
    """Return L_t = −sg(min(r_t, C))·Â_t·log π_θ, and 0 for a token that has moved too far the way Â pushes it.

    How far is the divergence of the two outcomes "this token" and "another one":
      tv  |π_θ − π_old|
      kl  π_old·log(π_old / π_θ) + (1 − π_old)·log((1 − π_old) / (1 − π_θ)), nats

    The trust region of Qi et al., arXiv:2602.04879 (its binary forms): rare tokens may change their ratio much,
    likely ones their probability little.

    Args:
      log_probs: under π_θ.
      old_log_probs: under π_old.
      advantages: Â.
      divergence: "tv" or "kl", static under jit.
      bound: largest divergence.
      ratio_bound: C.
    """
    chex.assert_equal_shape([log_probs, old_log_probs, advantages])
    ratio = policy_ratio(log_probs, old_log_probs)
    probability = jnp.minimum(jnp.exp(jax.lax.stop_gradient(log_probs)), _LARGEST_PROBABILITY)
    old_probability = jnp.minimum(jnp.exp(old_log_probs), _LARGEST_PROBABILITY)
    if divergence == "tv":
        moved = jnp.abs(probability - old_probability)
    else:
        stays = old_probability * (old_log_probs - jax.lax.stop_gradient(log_probs))
        leaves = (1.0 - old_probability) * (jnp.log1p(-old_probability) - jnp.log1p(-probability))
        moved = stays + leaves
    onwards = jnp.where(advantages > 0, probability > old_probability, probability < old_probability)
    dropped = onwards & (moved > bound)
    weight = jax.lax.stop_gradient(jnp.minimum(ratio, ratio_bound))
    losses = jnp.where(dropped, 0.0, -weight * advantages * log_probs)
    return losses, ClipIndicators(ratio, dropped, jnp.zeros_like(dropped))


def _unclipped(ratio: Float[Array, "B T"]) -> ClipIndicators:
    nothing: Bool[Array, "B T"] = jnp.zeros_like(ratio, dtype=bool)
    return ClipIndicators(ratio, nothing, nothing)
