"""What a dataflow may ask of each role. Knows neither where a role lives nor how it computes.

Every call returns at once with a future; a future given to another call starts it when it is ready, so data
moves between the roles without passing through the script that names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from jaxtyping import Float

from jaxflow.types import (
    Demonstrations,
    Experience,
    Future,
    Judgements,
    Metrics,
    Preferences,
    Prompts,
    Rollout,
    Scores,
    TokenLogProbs,
)


class Actor(Protocol):
    """The policy being trained."""

    def generate(self, prompts: Future[Prompts]) -> Future[Rollout]:
        """Sample one response per row."""
        ...

    def generate_greedy(self, prompts: Future[Prompts]) -> Future[Rollout]:
        """Give each row the response that the policy finds likeliest, token by token."""
        ...

    def log_probs(self, rollout: Future[Rollout]) -> Future[TokenLogProbs]:
        """Score the responses with the training path."""
        ...

    def update(
        self, experience: Future[Experience], pretraining: Future[Demonstrations] | None = None
    ) -> Future[Metrics]:
        """Run one step's policy updates; with a pretraining batch its cross-entropy is part of the loss."""
        ...


class Critic(Protocol):
    """The value model."""

    def values(self, rollout: Future[Rollout]) -> Future[Float[np.ndarray, "B T"]]:
        """Estimate V_t before each response token."""
        ...

    def update(self, experience: Future[Experience]) -> Future[Metrics]:
        """Run one step's value updates."""
        ...


class Reference(Protocol):
    """The policy's frozen starting point."""

    def log_probs(
        self, rollout: Future[Rollout] | Future[Demonstrations] | Future[Judgements] | Future[Preferences]
    ) -> Future[TokenLogProbs]:
        """Score the responses with the frozen weights, of pairs both."""
        ...


class Reward(Protocol):
    """What judges whole responses."""

    def score(self, rollout: Future[Rollout], prompts: Future[Prompts]) -> Future[Scores]:
        """Score each response."""
        ...


class Estimator(Protocol):
    """The numeric part of an algorithm: no model, arrays in, arrays out, beside the data."""

    def experience(
        self,
        rollout: Future[Rollout],
        scores: Future[Scores],
        actor_log_probs: Future[TokenLogProbs],
        reference_log_probs: Future[TokenLogProbs] | None,
        values: Future[Float[np.ndarray, "B T"]] | None = None,
    ) -> Future[Experience]:
        """Estimate advantages and returns."""
        ...

    def experience_over_greedy(
        self,
        rollout: Future[Rollout],
        scores: Future[Scores],
        greedy_scores: Future[Scores],
        actor_log_probs: Future[TokenLogProbs],
        reference_log_probs: Future[TokenLogProbs] | None,
    ) -> Future[Experience]:
        """Estimate advantages over the scores of greedy responses to the same prompts."""
        ...

    def cost_experience(
        self,
        rollout: Future[Rollout],
        costs: Future[Scores],
        actor_log_probs: Future[TokenLogProbs],
        reference_log_probs: Future[TokenLogProbs] | None,
        cost_values: Future[Float[np.ndarray, "B T"]],
    ) -> Future[Experience]:
        """Estimate advantages and returns of costs: moving away from the reference costs, where it paid less."""
        ...

    def constrained(
        self, experience: Future[Experience], cost_experience: Future[Experience], costs: Future[Scores]
    ) -> Future[Experience]:
        """Weigh the advantages of rewards against those of costs by the multiplier that these costs lead to."""
        ...

    def follow_costs(self, costs: Future[Scores]) -> Future[Metrics]:
        """Move the multiplier to where the step's costs lead, and describe it."""
        ...

    def uninformative_groups(self, scores: Future[Scores]) -> Future[int]:
        """Count the groups whose rewards are all equal."""
        ...

    def refilled_rollout(
        self,
        rollout: Future[Rollout],
        others: Future[Rollout],
        scores: Future[Scores],
        their_scores: Future[Scores],
    ) -> Future[Rollout]:
        """Replace uninformative groups by informative ones of another rollout, as far as there are any."""
        ...

    def refilled_scores(self, scores: Future[Scores], their_scores: Future[Scores]) -> Future[Scores]:
        """Replace the scores of the same groups."""
        ...

    def statistics(
        self, rollout: Future[Rollout], scores: Future[Scores], experience: Future[Experience]
    ) -> Future[Metrics]:
        """Describe the step in named scalars."""
        ...


class Pretraining(Protocol):
    """What the policy is not to forget while it learns from rewards."""

    def batch(self, prompts: Future[Prompts]) -> Future[Demonstrations]:
        """Give as many demonstrations as there are rows of prompts, of their step."""
        ...


class NoReference:
    """Stands where an algorithm plays without a reference."""

    def log_probs(self, rollout: Future[Rollout]) -> None:
        """Say nothing."""


class NoPretraining:
    """Stands where an algorithm plays without pretraining batches."""

    def batch(self, prompts: Future[Prompts]) -> None:
        """Give nothing."""


class Student(Protocol):
    """A policy that learns by imitation."""

    def update(self, demonstrations: Future[Demonstrations]) -> Future[Metrics]:
        """Run one step's supervised updates."""
        ...

    def measure(self, demonstrations: Future[Demonstrations]) -> Future[Metrics]:
        """Say what the loss makes of demonstrations, and learn nothing."""
        ...


class PreferenceLearner(Protocol):
    """A policy that learns from pairs."""

    def update(
        self,
        preferences: Future[Preferences],
        reference_log_probs: Future[TokenLogProbs],
    ) -> Future[Metrics]:
        """Run one step's updates."""
        ...

    def measure(
        self, preferences: Future[Preferences], reference_log_probs: Future[TokenLogProbs]
    ) -> Future[Metrics]:
        """Say what the loss makes of pairs, and learn nothing."""
        ...


class JudgedLearner(Protocol):
    """A policy that learns from responses which were wanted or not."""

    def update(
        self,
        judgements: Future[Judgements],
        reference_log_probs: Future[TokenLogProbs],
        reference_points: Future[Float[np.ndarray, "B"]],
    ) -> Future[Metrics]:
        """Run one step's updates."""
        ...

    def measure(
        self,
        judgements: Future[Judgements],
        reference_log_probs: Future[TokenLogProbs],
        reference_points: Future[Float[np.ndarray, "B"]],
    ) -> Future[Metrics]:
        """Say what the loss makes of responses, and learn nothing."""
        ...

    def log_probs(self, sequences: Future[Demonstrations]) -> Future[TokenLogProbs]:
        """Score the responses with the training path."""
        ...

    def mismatched(self, judgements: Future[Judgements]) -> Future[Demonstrations]:
        """Put the responses behind prompts of other rows."""
        ...

    def reference_points(
        self, log_probs: Future[TokenLogProbs], reference_log_probs: Future[TokenLogProbs]
    ) -> Future[Float[np.ndarray, "B"]]:
        """Estimate how far the policy is from the reference, by responses that are nobody's answer."""
        ...


class JudgeLearner(Protocol):
    """A reward or cost model that learns from pairs."""

    def update(self, preferences: Future[Preferences]) -> Future[Metrics]:
        """Run one step's updates."""
        ...

    def measure(self, preferences: Future[Preferences]) -> Future[Metrics]:
        """Say what the loss makes of pairs, and learn nothing."""
        ...


class StudentRoles(Protocol):
    """Whom supervised fine-tuning asks."""

    actor: Student


class PreferenceRoles(Protocol):
    """Whom a policy that learns from pairs plays with."""

    actor: PreferenceLearner
    reference: Reference


class JudgedRoles(Protocol):
    """Whom a policy that learns from judged responses plays with."""

    actor: JudgedLearner
    reference: Reference


class RewardLearnerRoles(Protocol):
    """Whom reward-model training asks."""

    reward: JudgeLearner


class CostLearnerRoles(Protocol):
    """Whom cost-model training asks."""

    cost: JudgeLearner


class Roles(Protocol):
    """The built-in roles as a script sees them: an attribute each. A script casts those it asks."""

    actor: Actor
    critic: Critic
    reference: Reference | NoReference
    reward: Reward
    estimator: Estimator
    cost: Reward
    cost_critic: Critic
    pretraining: Pretraining | NoPretraining
    # Of this step, for groups that teach nothing; none where not asked for
    further_prompts: Iterable[Future[Prompts]]
