"""The pull towards the reference: per-token estimates, their place in the rewards, the adaptive coefficient.

Knows sampled tokens alone: a KL over the vocabulary is measured beside the models, by `engine.score`.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow import types
from jaxflow.algorithms.masked import on_mask

KL_ESTIMATORS = ("k1", "k2", "k3", "abs")
KL_REWARD_ESTIMATORS = (*KL_ESTIMATORS, "full")
"""In rewards also the exact KL over the vocabulary, which a model gives and no estimate."""
KL_LOSS_ESTIMATORS = (*KL_ESTIMATORS, *(f"{name}+" for name in KL_ESTIMATORS), "full")
"""In a loss also that, and straight-through forms."""


def kl_estimate(
    log_probs: Float[Array, "B T"], reference_log_probs: Float[Array, "B T"], estimator: str
) -> Float[Array, "B T"]:
    """Estimate KL(π_θ ‖ π_ref) in nats at each token sampled from π_θ.

    With d = log π_ref − log π_θ:
      k1 = −d            unbiased, either sign
      k2 = d² / 2        biased, small variance
      k3 = eᵈ − d − 1    unbiased, never negative; d clamped to ±20, then k3 to at most 10
      abs = |d|          biased, slopes of one size

    Note on gradients, where the estimate is a loss: only k2's is the on-policy gradient of this KL. k1's has
    mean zero; k3's is in expectation that of KL(π_ref ‖ π_θ). k3's clamps, as in verl, cut its gradient to
    zero where d > 2.61 or d < −11: a token that far from the reference is not pulled back. A name with a plus
    (`k3+`) is straight-through: the value of the estimator, the gradient of k2.

    Schulman, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html

    Raises:
      UserError: unknown estimator.
    """
    chex.assert_rank([log_probs, reference_log_probs], 2)
    chex.assert_equal_shape([log_probs, reference_log_probs])
    chex.assert_type([log_probs, reference_log_probs], float)
    difference = reference_log_probs - log_probs
    if estimator.endswith("+"):
        pull = jnp.square(difference) / 2
        value = kl_estimate(log_probs, reference_log_probs, estimator.removesuffix("+"))
        return pull + jax.lax.stop_gradient(value - pull)
    match estimator:
        case "k1":
            return -difference
        case "k2":
            return jnp.square(difference) / 2
        case "k3":
            clamped = jnp.clip(difference, -20.0, 20.0)
            # expm1 keeps the digits that exp(d) − 1 loses where the policies are close: nearly everywhere.
            return jnp.minimum(jnp.expm1(clamped) - clamped, 10.0)
        case "abs":
            # jnp.abs has slope 1 at 0, where every token of a fresh policy is: it would be pushed one way.
            return difference * jnp.sign(difference)
    raise types.UserError(
        f"KL estimator '{estimator}' is unknown: choose one of {', '.join(KL_LOSS_ESTIMATORS[:-1])}"
    )


def kl_in_rewards(
    log_probs: Float[Array, "B T"],
    reference_log_probs: Float[Array, "B T"],
    exact: Float[Array, "B T"] | None,
    mask: Bool[Array, "B T"],
    estimator: str,
) -> Float[Array, "B T"]:
    """Return the KL of each response token that rewards are shaped with: an estimate, or the exact one.

    full  Σ_v π_θ(v)·(log π_θ(v) − log π_ref(v)) given the tokens before, whatever token was sampled: the mean that
          k1 and k3 are estimates of, without their noise.

    Args:
      log_probs: of the policy before its update.
      reference_log_probs: of the reference.
      exact: KL over the whole vocabulary; read by `full` alone.
      mask: response tokens; elsewhere 0 is returned.
      estimator: one of KL_REWARD_ESTIMATORS, static under jit.

    Raises:
      UserError: unknown estimator; `full` where no model measured it.
    """
    if estimator == "full":
        return exact_kl(exact, mask)
    return on_mask(kl_estimate(log_probs, reference_log_probs, estimator), mask)


def exact_kl(measured: Float[Array, "B T"] | None, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Return the KL over the vocabulary that a model measured, 0 off the mask; UserError where none did."""
    if measured is None:
        raise types.UserError(
            "the KL over the whole vocabulary needs the reference's weights beside the policy's"
        )
    return on_mask(measured, mask)


def shape_rewards(
    scores: Float[Array, "B"],
    kl: Float[Array, "B T"],
    response_mask: Bool[Array, "B T"],
    coefficient: Float[Array, ""] | float,
) -> Float[Array, "B T"]:
    """Return token rewards R_t = −β·KL_t + 1[t = last response token]·score, 0 off the mask.

    InstructGPT, arXiv:2203.02155. A row without response tokens is all zeros: its score is paid nowhere.
    """
    chex.assert_rank([scores, kl, response_mask], [1, 2, 2])
    chex.assert_type([scores, kl], float)
    chex.assert_equal_shape_prefix([scores, kl], 1)
    tokens_from_here = jnp.cumsum(response_mask[:, ::-1], axis=1)[:, ::-1]
    last = response_mask & (tokens_from_here == 1)
    paid = on_mask(jnp.broadcast_to(scores[:, None], kl.shape), last)
    return paid - coefficient * on_mask(kl, response_mask)


def adapt_coefficient(coefficient: float, kl: float, target: float, horizon: float, sequences: int) -> float:
    """Return β·(1 + e·n/H), where e = clip(KL/target − 1, −0.2, 0.2).

    Ziegler et al., arXiv:1909.08593. A KL that is not finite leaves β as it was: one broken step must not
    break the state of a run.

    Args:
      coefficient: β in force.
      kl: measured, nats per token.
      target: nats per token aimed at, > 0.
      horizon: H, in sequences; larger is slower.
      sequences: n, the sequences that `kl` was measured on.
    """
    if not math.isfinite(kl):
        return coefficient
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * sequences / horizon)
