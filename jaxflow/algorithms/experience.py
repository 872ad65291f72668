"""From a rollout and what the models say of it to what an update reads.

Knows arrays, never a model. Sees the whole step at once: whitening is over all its sequences.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float

from jaxflow import types
from jaxflow.algorithms.advantages import gae
from jaxflow.algorithms.kl import kl_estimate, shape_rewards
from jaxflow.algorithms.masked import on_mask, whiten


@dataclasses.dataclass(frozen=True)
class PPOEstimator:
    """PPO's way to advantages: KL in the rewards, then GAE, then whitening if asked."""

    discount: float  # γ per token
    gae_lambda: float  # λ
    whiten_advantages: bool  # over the whole step; the returns stay raw
    kl_reward_estimator: str  # one of KL_ESTIMATORS

    def __call__(
        self,
        rollout: types.Rollout,
        scores: types.Scores,
        actor_log_probs: Float[Array, "B T"],
        reference_log_probs: Float[Array, "B T"],
        values: Float[Array, "B T"],
        kl_coefficient: Float[Array, ""] | float,
    ) -> types.Experience:
        """Return the experience of the step; every per-token field is 0 off the response mask.

        Args:
          rollout: the step's sequences.
          scores: one per sequence.
          actor_log_probs: of the policy before its update.
          reference_log_probs: of the frozen reference.
          values: of the critic before its update.
          kl_coefficient: β in force; may be traced, as it changes from step to step.
        """
        mask = rollout.response_mask
        actor_log_probs = on_mask(actor_log_probs, mask)
        reference_log_probs = on_mask(reference_log_probs, mask)
        kl = kl_estimate(actor_log_probs, reference_log_probs, self.kl_reward_estimator)
        rewards = shape_rewards(scores.scores, kl, mask, kl_coefficient)
        advantages, returns = gae(rewards, values, mask, self.discount, self.gae_lambda)
        if self.whiten_advantages:
            advantages = whiten(advantages, mask)
        return types.Experience(
            tokens=rollout.tokens,
            lengths=rollout.lengths,
            response_mask=mask,
            actor_log_probs=actor_log_probs,
            reference_log_probs=reference_log_probs,
            values=on_mask(values, mask),
            advantages=advantages,
            returns=returns,
        )
