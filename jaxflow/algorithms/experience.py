"""From a rollout and what the models say of it to what an update reads.

Knows arrays, never a model. Sees the whole step at once: groups and whitening are over all its sequences.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow import types
from jaxflow.algorithms import covariance, group_advantages, importance
from jaxflow.algorithms.advantages import ESTIMATORS, gae
from jaxflow.algorithms.kl import kl_in_rewards, shape_rewards
from jaxflow.algorithms.masked import on_mask, whiten
from jaxflow.algorithms.selection import score_weights


@dataclasses.dataclass(frozen=True)
class OffPolicyRule:
    """Weights π_old / μ within bounds, and which tokens are rejected for theirs; "off" is neither."""

    level: str  # "off" or one of LEVELS
    bounds: str  # one of BOUNDS
    lower: float
    upper: float
    rejection: str  # "off" or one of LEVELS
    rejection_lower: float
    rejection_upper: float

    def __call__(
        self,
        old_log_probs: Float[Array, "B T"],
        sampler_log_probs: Float[Array, "B T"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T"] | None:
        """Return the weight of each token, or None where all count the same."""
        weights = None
        if self.level != "off":
            ratio = importance.importance_ratio(old_log_probs, sampler_log_probs, mask, self.level)
            weights = importance.bounded_weights(ratio, self.bounds, self.lower, self.upper)
        if self.rejection != "off":
            ratio = importance.importance_ratio(old_log_probs, sampler_log_probs, mask, self.rejection)
            kept = importance.accepted(ratio, self.rejection_lower, self.rejection_upper)
            weights = kept.astype(jnp.float32) if weights is None else on_mask(weights, kept)
        return weights


@dataclasses.dataclass(frozen=True)
class CovarianceRule:
    """Which tokens the entropy mechanism singles out, and what becomes of them."""

    effect: str  # "off" | "drop": clip-cov's, their weight is 0 | "penalise": kl-cov's, their distance costs
    fraction: float  # of the step's tokens
    low: float  # drop: the covariance lies above this
    high: float  # and below this
    seed: int  # with the age of the policy, where the draw is


@dataclasses.dataclass(frozen=True)
class ExperienceEstimator:
    """The way to advantages of every algorithm: KL in the rewards, the estimator, then how much each token counts."""

    estimator: str  # one of ESTIMATORS
    discount: float  # γ per token
    gae_lambda: float  # λ
    score_bound: float  # scores count as at most ± this; 0.0: as they are
    whiten_advantages: bool  # gae's, over the whole step; the returns stay raw
    normalize_by_std: bool  # of group baselines
    kl_reward_estimator: str  # one of KL_REWARD_ESTIMATORS
    component_weights: tuple[float, ...]  # gdpo's, one per component of the scores
    off_policy: OffPolicyRule
    covariance: CovarianceRule
    reweighting: str  # "off" or one of REWEIGHTINGS
    reweighting_power: float

    def __call__(
        self,
        rollout: types.Rollout,
        scores: types.Scores,
        actor_log_probs: Float[Array, "B T"],
        reference_log_probs: Float[Array, "B T"] | None,
        values: Float[Array, "B T"] | None,
        greedy_scores: Float[Array, "B"] | None,
        kl_coefficient: Float[Array, ""] | float,
        reference_kl: Float[Array, "B T"] | None = None,
    ) -> types.Experience:
        """Return the experience of the step; every per-token field is 0 off the response mask.

        Args:
          rollout: the step's sequences.
          scores: one per sequence.
          actor_log_probs: of the policy before its update.
          reference_log_probs: of the frozen reference; None where the algorithm has none.
          values: of the critic before its update; None where there is none.
          greedy_scores: of the unsampled response to each prompt; None where there is none (remax alone has).
          kl_coefficient: β in force; may be traced, as it changes from step to step. Below 0 where the scores are
            costs: what moves away from the reference costs more.
          reference_kl: KL over the whole vocabulary at each token; read by the KL estimator `full` alone.
        """
        mask = rollout.response_mask
        actor_log_probs = on_mask(actor_log_probs, mask)
        zeros = jnp.zeros_like(actor_log_probs)
        # Without a reference the policy is its own: at distance 0, wherever that is asked.
        reference = actor_log_probs if reference_log_probs is None else on_mask(reference_log_probs, mask)
        kl = kl_in_rewards(actor_log_probs, reference, reference_kl, mask, self.kl_reward_estimator)
        values = zeros if values is None else on_mask(values, mask)
        if self.score_bound > 0:
            bounded = jnp.clip(scores.scores, -self.score_bound, self.score_bound)
            scores = dataclasses.replace(scores, scores=bounded)
            if greedy_scores is not None:
                greedy_scores = jnp.clip(greedy_scores, -self.score_bound, self.score_bound)
        rewards = shape_rewards(scores.scores, kl, mask, kl_coefficient)
        advantages, returns = self._advantages(rollout, scores, rewards, values, greedy_scores)
        weights, penalised = self._weights(rollout, scores, actor_log_probs, advantages)
        return types.Experience(
            tokens=rollout.tokens,
            lengths=rollout.lengths,
            response_mask=mask,
            actor_log_probs=actor_log_probs,
            reference_log_probs=reference,
            values=values,
            advantages=advantages,
            returns=returns,
            policy_updates=rollout.policy_updates,
            weights=weights,
            penalised=penalised,
            reference_kl=kl if self.kl_reward_estimator == "full" else None,
        )

    def _advantages(
        self,
        rollout: types.Rollout,
        scores: types.Scores,
        rewards: Float[Array, "B T"],
        values: Float[Array, "B T"],
        greedy_scores: Float[Array, "B"] | None,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """Return advantages, and the critic's targets; without a critic those are the rewards to go."""
        mask, groups = rollout.response_mask, rollout.groups
        if self.estimator == "gae":
            advantages, returns = gae(rewards, values, mask, self.discount, self.gae_lambda)
            return whiten(advantages, mask) if self.whiten_advantages else advantages, returns
        returns = group_advantages.returns_to_go(rewards, mask, self.discount)
        match self.estimator:
            case "reinforce_plus_plus":
                return group_advantages.reinforce_plus_plus(rewards, mask, self.discount), returns
            case "remax" if greedy_scores is not None:
                return group_advantages.remax(rewards, greedy_scores, mask, self.discount), returns
            case "gdpo" if scores.components is not None:
                weights = jnp.asarray(self.component_weights, jnp.float32)
                components = scores.components
                advantages = group_advantages.gdpo(components, weights, groups, mask, self.normalize_by_std)
                return advantages, returns
        # A response's whole reward, its KL included.
        totals, present = jnp.sum(rewards, axis=1), jnp.any(mask, axis=1)
        match self.estimator:
            case "grpo":
                of_rows = group_advantages.grpo(totals, groups, present, self.normalize_by_std)
            case "grpo_passk":
                of_rows = group_advantages.grpo_passk(totals, groups, present, self.normalize_by_std)
            case "rloo":
                of_rows = group_advantages.rloo(totals, groups, present)
            case "opo":
                of_rows = group_advantages.opo(totals, groups, present, jnp.sum(mask, axis=1))
            case "gpg":
                of_rows = group_advantages.gpg(totals, groups, present)
            case "reinforce_plus_plus_baseline":
                return group_advantages.reinforce_plus_plus_baseline(totals, groups, mask), returns
            case "remax":
                raise types.UserError("the estimator remax needs the scores of greedy responses: cast remax")
            case "gdpo":
                raise types.UserError("the estimator gdpo needs components of the score: set algorithm.gdpo")
            case _:
                known = ", ".join(ESTIMATORS)
                raise types.UserError(f"estimator '{self.estimator}' is unknown: choose one of {known}")
        return group_advantages.per_token(of_rows, mask), returns

    def _weights(
        self,
        rollout: types.Rollout,
        scores: types.Scores,
        actor_log_probs: Float[Array, "B T"],
        advantages: Float[Array, "B T"],
    ) -> tuple[Float[Array, "B T"] | None, Bool[Array, "B T"] | None]:
        """Return how much each token's objective counts, and which tokens' distance from π_old costs."""
        mask, rule = rollout.response_mask, self.covariance
        weights = self.off_policy(actor_log_probs, rollout.rollout_log_probs, mask)
        penalised = None
        if self.reweighting != "off":
            present = jnp.any(mask, axis=1)
            of_rows = score_weights(scores.scores, present, self.reweighting, self.reweighting_power)
            spread = group_advantages.per_token(of_rows, mask)
            weights = spread if weights is None else weights * spread
        if rule.effect != "off":
            together = covariance.covariances(actor_log_probs, advantages, mask)
            if rule.effect == "drop":
                key = jax.random.fold_in(jax.random.key(rule.seed), jnp.max(rollout.policy_updates))
                drawn = covariance.drawn_between(together, mask, rule.fraction, rule.low, rule.high, key)
                weights = (jnp.ones_like(advantages) if weights is None else weights) * ~drawn
            else:
                penalised = covariance.largest(together, mask, rule.fraction)
        return (None if weights is None else on_mask(weights, mask)), penalised
