"""Policies that learn from pairs by themselves: DPO (arXiv 2305.18290), IPO and KTO. Knows roles by what they do."""

from __future__ import annotations

from jaxflow.dataflow.roles import PreferenceRoles
from jaxflow.types import Future, Metrics, Preferences


def dpo(roles: PreferenceRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Run one step of DPO or, by its loss, IPO: prefer the chosen responses more than the reference does."""
    return [roles.actor.update(preferences, roles.reference.log_probs(preferences))]


def dpo_held_out(roles: PreferenceRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Say what the loss makes of pairs that were never learnt from."""
    return [roles.actor.measure(preferences, roles.reference.log_probs(preferences))]


def kto(roles: PreferenceRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Run one step of KTO (arXiv 2402.01306): what is gained or lost counts from how far the policy has moved."""
    unrelated = roles.actor.unrelated(preferences)
    points = roles.actor.reference_points(
        roles.actor.log_probs(unrelated), roles.reference.log_probs(unrelated)
    )
    return [roles.actor.update(preferences, roles.reference.log_probs(preferences), points)]


def kto_held_out(roles: PreferenceRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Say what the loss makes of pairs that were never learnt from."""
    unrelated = roles.actor.unrelated(preferences)
    points = roles.actor.reference_points(
        roles.actor.log_probs(unrelated), roles.reference.log_probs(unrelated)
    )
    return [roles.actor.measure(preferences, roles.reference.log_probs(preferences), points)]
