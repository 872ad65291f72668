"""The figures of one step's experience, under verl's metric names.

Knows no clock, no optimizer, no writer. Rows without response tokens are not counted; a statistic of nothing
is 0, so every figure is finite for finite inputs.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow import types
from jaxflow.algorithms.kl import kl_in_rewards, shape_rewards
from jaxflow.algorithms.masked import masked_mean, masked_sum, masked_variance, on_mask

Scalars = dict[str, Float[Array, ""]]


def experience_statistics(
    rollout: types.Rollout,
    scores: types.Scores,
    experience: types.Experience,
    kl_coefficient: Float[Array, ""] | float,
    kl_estimator: str,
    max_response_tokens: int,
    with_critic: bool,
) -> Scalars:
    """Return the step's scores, advantages, lengths, KL and sampler gap as float32 scalars.

    Args:
      rollout: the step's sequences.
      scores: one per sequence.
      experience: made of them.
      kl_coefficient: β that the rewards were made with.
      kl_estimator: of the KL in the rewards, one of KL_REWARD_ESTIMATORS.
      max_response_tokens: responses this long count as cut (`response_length/clip_ratio`).
      with_critic: whether the values are a critic's, and worth figures.
    """
    mask = experience.response_mask
    rows = jnp.any(mask, axis=1)
    response_tokens = jnp.sum(mask, axis=1)
    actor_log_probs = on_mask(experience.actor_log_probs, mask)
    reference_log_probs = on_mask(experience.reference_log_probs, mask)
    kl = kl_in_rewards(actor_log_probs, reference_log_probs, experience.reference_kl, mask, kl_estimator)
    rewards = jnp.sum(shape_rewards(scores.scores, kl, mask, kl_coefficient), axis=1)
    cut = jnp.asarray(response_tokens >= max_response_tokens, jnp.float32)
    statistics = {
        **_spread("critic/score", scores.scores, rows),
        **_spread("critic/rewards", rewards, rows),
        **_spread("critic/advantages", experience.advantages, mask),
        **_spread("critic/returns", experience.returns, mask),
        **_spread("response_length", response_tokens, rows),
        "response_length/clip_ratio": masked_mean(cut, rows),
        "rollout/stopped_rows": jnp.sum(rollout.stopped),
        **_spread("prompt_length", experience.lengths - response_tokens, rows),
        "actor/reward_kl_penalty": masked_mean(kl, mask),
        "actor/reward_kl_penalty_coeff": kl_coefficient,
        **_sampler_gap(actor_log_probs, on_mask(rollout.rollout_log_probs, mask), mask),
        "reward/accuracy_mean": masked_mean(scores.accuracy, rows),
        "reward/failed_rows": jnp.sum(scores.failed & rows),
        "perf/total_num_tokens": masked_sum(experience.lengths, rows),
    }
    if with_critic:
        statistics |= _spread("critic/values", experience.values, mask)
        explained = explained_variance(experience.values, experience.returns, mask)
        statistics["critic/vf_explained_var"] = explained
    if experience.weights is not None:
        statistics |= _spread("training/token_weights", experience.weights, mask)
    return {name: jnp.asarray(value, jnp.float32) for name, value in statistics.items()}


def explained_variance(
    values: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, ""]:
    """Return 1 − var(G − V) / (var(G) + 1e-5): 1 for a perfect critic, 0 for a constant, less for worse."""
    unexplained = masked_variance(on_mask(returns, mask) - on_mask(values, mask), mask)
    return 1.0 - unexplained / (masked_variance(returns, mask) + 1e-5)


def correlation(x: Float[Array, "B T"], y: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Return Pearson's correlation over the mask, 0 where x or y does not vary."""
    x = on_mask(x - masked_mean(x, mask), mask)
    y = on_mask(y - masked_mean(y, mask), mask)
    # Roots before the product: squares of small probabilities would underflow.
    scale = jnp.sqrt(jnp.sum(jnp.square(x))) * jnp.sqrt(jnp.sum(jnp.square(y)))
    return jnp.where(scale > 0, jnp.sum(x * y) / jnp.where(scale > 0, scale, 1.0), 0.0)


def _sampler_gap(
    actor_log_probs: Float[Array, "B T"], rollout_log_probs: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Scalars:
    """Return how far the training path's probabilities of the sampled tokens are from the sampler's."""
    actor_probs, rollout_probs = jnp.exp(actor_log_probs), jnp.exp(rollout_log_probs)
    probs_gap = jnp.abs(actor_probs - rollout_probs)
    log_probs_gap = jnp.abs(actor_log_probs - rollout_log_probs)
    return {
        "training/rollout_probs_diff_mean": masked_mean(probs_gap, mask),
        "training/rollout_probs_diff_max": _masked_max(probs_gap, mask),
        "training/rollout_probs_diff_std": jnp.sqrt(masked_variance(probs_gap, mask)),
        "training/rollout_log_probs_diff_mean": masked_mean(log_probs_gap, mask),
        "training/rollout_log_probs_diff_max": _masked_max(log_probs_gap, mask),
        "training/rollout_actor_probs_pearson_corr": correlation(rollout_probs, actor_probs, mask),
    }


def _spread(name: str, x: Array, mask: Bool[Array, "..."]) -> Scalars:
    x = jnp.asarray(x, jnp.float32)
    return {
        f"{name}/mean": masked_mean(x, mask),
        f"{name}/max": _masked_max(x, mask),
        f"{name}/min": -_masked_max(-x, mask),
    }


def _masked_max(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    return jnp.where(jnp.any(mask), jnp.max(jnp.where(mask, x, -jnp.inf)), 0.0)
