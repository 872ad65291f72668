"""Whole losses of one micro-batch: objective, entropy and KL, composed and aggregated.

Knows arrays, never a model. Each call returns (loss, parts). The loss and every part are sums divided by the
counts of the whole mini-batch: added over micro-batches and devices, they are the mini-batch's value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxflow import types
from jaxflow.algorithms.aggregate import aggregate
from jaxflow.algorithms.importance import off_policy_sequences
from jaxflow.algorithms.kl import exact_kl, kl_estimate
from jaxflow.algorithms.masked import masked_sum, on_mask
from jaxflow.algorithms.objectives import Objective, clipped_value_loss

Parts = Mapping[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """The policy's loss: L = ⟨w·L_obj⟩ + κ·⟨|log r|⟩_penalised − c_H·⟨H⟩ + β·⟨KL(π_θ ‖ π_ref)⟩.

    ⟨·⟩ is the aggregation over all response tokens, whatever their weight; w and the penalised tokens are the batch's.
    """

    objective: Objective
    entropy_coefficient: float  # c_H
    aggregation: str  # one of AGGREGATIONS
    kl_coefficient: float  # β; 0.0: no such term, and the reference is not read
    kl_estimator: str  # one of KL_LOSS_ESTIMATORS
    length_constant: float  # tokens, most a response may have
    penalty_coefficient: float  # κ, of tokens that the batch marks as penalised
    # Nats; sequences drifted further at negative advantage are dropped; 0.0: none
    negative_sequence_bound: float

    def __call__(
        self, output: types.TokenLogProbs, batch: types.Experience, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the loss and its parts under verl's names; `actor/kl_loss` if that term is in the loss."""
        mask = batch.response_mask
        log_probs = on_mask(output.log_probs, mask)
        old_log_probs = on_mask(batch.actor_log_probs, mask)
        advantages = on_mask(batch.advantages, mask)
        losses, indicators = self.objective(log_probs, old_log_probs, advantages, mask)
        parts = {}
        if batch.weights is not None:
            losses = losses * on_mask(batch.weights, mask)
        if batch.penalised is not None:
            distance = on_mask(kl_estimate(log_probs, old_log_probs, "abs"), mask & batch.penalised)
            losses = losses + self.penalty_coefficient * distance
            parts["actor/penalised_fraction"] = _token_mean(batch.penalised, mask, counts)
        if self.negative_sequence_bound != 0.0:
            still = jax.lax.stop_gradient(log_probs)
            bound = self.negative_sequence_bound
            dropped = off_policy_sequences(still, old_log_probs, advantages, mask, bound)
            losses = jnp.where(dropped[:, None], 0.0, losses)
            parts["actor/dropped_sequences"] = jnp.sum(dropped) / counts.sequences
        loss = self._aggregate(losses, mask, counts)
        entropy = self._aggregate(output.entropy, mask, counts)
        parts |= {
            "actor/pg_loss": loss,
            "actor/ppo_kl": _token_mean(old_log_probs - log_probs, mask, counts),
            "actor/pg_clipfrac": _token_mean(indicators.clipped, mask, counts),
            "actor/pg_clipfrac_lower": _token_mean(indicators.clipped_lower, mask, counts),
            "actor/entropy": entropy,
        }
        # A zero coefficient leaves the term out of the program: XLA may not drop 0·x, nor its backward pass.
        if self.entropy_coefficient != 0.0:
            loss = loss - self.entropy_coefficient * entropy
        if self.kl_coefficient != 0.0:
            kl = self._kl(log_probs, output, batch)
            parts["actor/kl_loss"] = self._aggregate(kl, mask, counts)
            loss = loss + self.kl_coefficient * parts["actor/kl_loss"]
        return loss, parts

    def _kl(
        self, log_probs: Float[Array, "B T"], output: types.TokenLogProbs, batch: types.Experience
    ) -> Float[Array, "B T"]:
        mask = batch.response_mask
        if self.kl_estimator != "full":
            return kl_estimate(log_probs, on_mask(batch.reference_log_probs, mask), self.kl_estimator)
        return exact_kl(output.reference_kl, mask)

    def _aggregate(
        self, losses: Float[Array, "B T"], mask: Bool[Array, "B T"], counts: types.Counts
    ) -> Float[Array, ""]:
        return aggregate(losses, mask, self.aggregation, counts, self.length_constant)


@dataclasses.dataclass(frozen=True)
class ValueLoss:
    """The critic's loss: clipped squared error to the returns, aggregated."""

    value_clip: float  # 0.0: off
    aggregation: str  # one of AGGREGATIONS
    length_constant: float  # tokens, most a response may have
    role: str = "critic"  # whose loss it is: the parts' names begin with it

    def __call__(
        self, values: Float[Array, "B T"], batch: types.Experience, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the loss and its parts under verl's names."""
        mask = batch.response_mask
        losses, clipped = clipped_value_loss(
            on_mask(values, mask), on_mask(batch.values, mask), on_mask(batch.returns, mask), self.value_clip
        )
        loss = aggregate(losses, mask, self.aggregation, counts, self.length_constant)
        return loss, {
            f"{self.role}/vf_loss": loss,
            f"{self.role}/vf_clipfrac": _token_mean(clipped, mask, counts),
            f"{self.role}/vpred_mean": _token_mean(values, mask, counts),
        }


@dataclasses.dataclass(frozen=True)
class SupervisedLoss:
    """Cross-entropy on the response: L = −Σ_m log π_θ / N, with N the mini-batch's response tokens."""

    def __call__(
        self, output: types.TokenLogProbs, batch: types.Demonstrations, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the loss in nats per token, also as the part `sft/loss`."""
        loss = -_token_mean(output.log_probs, batch.response_mask, counts)
        return loss, {"sft/loss": loss}


@dataclasses.dataclass(frozen=True)
class PretrainingLoss:
    """PPO-ptx's term: L = γ·(−Σ_m log π_θ / N) over demonstrations, beside the policy's loss.

    Ouyang et al., arXiv:2203.02155 (γ = 27.8 there, 16 in Safe-RLHF's scripts).
    """

    coefficient: float  # γ

    def __call__(
        self, output: types.TokenLogProbs, batch: types.Demonstrations, counts: types.Counts
    ) -> tuple[Float[Array, ""], Parts]:
        """Return the weighed loss; the part `actor/ptx_loss` is the cross-entropy in nats per token, unweighed."""
        loss = -_token_mean(output.log_probs, batch.response_mask, counts)
        return self.coefficient * loss, {"actor/ptx_loss": loss}


def _token_mean(x: Shaped[Array, "B T"], mask: Bool[Array, "B T"], counts: types.Counts) -> Float[Array, ""]:
    return masked_sum(x, mask) / counts.tokens
