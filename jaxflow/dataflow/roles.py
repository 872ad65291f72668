"""What a dataflow may ask of each role. Knows neither where a role lives nor how it computes.

Every call returns at once with a future; a future given to another call starts it when it is ready, so data
moves between the roles without passing through the script that names it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Float

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

    def generate(self, prompts: Future[Prompts]) -> Future[Rollout]:
        """Sample one response per row."""
        ...

    def log_probs(self, rollout: Future[Rollout]) -> Future[TokenLogProbs]:
        """Score the responses with the training path."""
        ...

    def update(self, experience: Future[Experience]) -> Future[Metrics]:
        """Run one step's policy updates."""
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

    def log_probs(self, rollout: Future[Rollout]) -> Future[TokenLogProbs]:
        """Score the responses with the frozen weights."""
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
        reference_log_probs: Future[TokenLogProbs],
        values: Future[Float[np.ndarray, "B T"]],
    ) -> Future[Experience]:
        """Estimate advantages and returns."""
        ...

    def statistics(
        self, rollout: Future[Rollout], scores: Future[Scores], experience: Future[Experience]
    ) -> Future[Metrics]:
        """Describe the step in named scalars."""
        ...


class Student(Protocol):
    """A model that learns by imitation."""

    def imitate(self, demonstrations: Demonstrations | Future[Demonstrations]) -> Future[Metrics]:
        """Run one supervised update."""
        ...


class Roles(Protocol):
    """The built-in roles as a script sees them: an attribute each. A script casts those it asks."""

    actor: Actor
    critic: Critic
    reference: Reference
    reward: Reward
    estimator: Estimator
