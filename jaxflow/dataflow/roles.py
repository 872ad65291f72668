"""What a dataflow may ask of each role. Knows neither where a role lives nor how it computes.

Every call returns at once with a future; a future given to another call starts it when it is ready, so data
moves between the roles without passing through the script that names it.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from jaxflow.types import (
    Demonstrations,
    Experience,
    Future,
    Metrics,
    Prompts,
    Rollout,
    Scores,
    TokenLogProbs,
)


class Actor(Protocol):
    """The policy being trained."""

    def generate(self, prompts: Prompts) -> Future[Rollout]:
        """Sample one response per row."""
        ...

    def log_probs(self, rollout: Rollout | Future[Rollout]) -> Future[TokenLogProbs]:
        """Score the responses with the training path."""
        ...

    def update(self, experience: Experience | Future[Experience]) -> Future[Metrics]:
        """Run one step's policy updates."""
        ...


class Critic(Protocol):
    """The value model."""

    def values(self, rollout: Rollout | Future[Rollout]) -> Future[object]:
        """Estimate V_t before each response token, [B, T]."""
        ...

    def update(self, experience: Experience | Future[Experience]) -> Future[Metrics]:
        """Run one step's value updates."""
        ...


class Reference(Protocol):
    """The policy's frozen starting point."""

    def log_probs(self, rollout: Rollout | Future[Rollout]) -> Future[TokenLogProbs]:
        """Score the responses with the frozen weights."""
        ...


class Reward(Protocol):
    """What judges whole responses."""

    def score(self, rollout: Rollout | Future[Rollout], prompts: Prompts) -> Future[Scores]:
        """Score each response."""
        ...


class Estimator(Protocol):
    """The numeric part of an algorithm: no model, arrays in, arrays out, beside the data."""

    def experience(
        self,
        rollout: Rollout | Future[Rollout],
        scores: Scores | Future[Scores],
        actor_log_probs: TokenLogProbs | Future[TokenLogProbs],
        reference_log_probs: TokenLogProbs | Future[TokenLogProbs],
        values: object,
    ) -> Future[Experience]:
        """Estimate advantages and returns."""
        ...

    def statistics(
        self,
        rollout: Rollout | Future[Rollout],
        scores: Scores | Future[Scores],
        experience: Experience | Future[Experience],
    ) -> Future[Metrics]:
        """Describe the step in named scalars."""
        ...


class Student(Protocol):
    """A model that learns by imitation."""

    def imitate(self, demonstrations: Demonstrations) -> Future[Metrics]:
        """Run one supervised update."""
        ...


@dataclasses.dataclass(frozen=True)
class Roles:
    """The cast of a reinforcement-learning dataflow."""

    actor: Actor
    critic: Critic
    reference: Reference
    reward: Reward
    estimator: Estimator
