"""Reward-model training on pairs (Bradley–Terry). Knows a learner by what it does, nothing else."""

from __future__ import annotations

from jaxflow.dataflow.roles import RewardLearnerRoles
from jaxflow.types import Future, Metrics, Preferences


def reward_model(roles: RewardLearnerRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Run one step: learn to put the chosen responses above the rejected ones."""
    return [roles.reward.update(preferences)]


def reward_model_held_out(
    roles: RewardLearnerRoles, preferences: Future[Preferences]
) -> list[Future[Metrics]]:
    """Say how well pairs that were never learnt from are told apart."""
    return [roles.reward.measure(preferences)]
