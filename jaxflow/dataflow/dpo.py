"""A policy that learns from pairs by itself: DPO (arXiv 2305.18290), IPO by its loss. Knows roles by what they do."""

from __future__ import annotations

from jaxflow.dataflow.roles import PreferenceRoles
from jaxflow.types import Future, Metrics, Preferences


def dpo(roles: PreferenceRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Run one step of DPO or, by its loss, IPO: prefer the chosen responses more than the reference does."""
    return [roles.actor.update(preferences, roles.reference.log_probs(preferences))]


def dpo_held_out(roles: PreferenceRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Say what the loss makes of pairs that were never learnt from."""
    return [roles.actor.measure(preferences, roles.reference.log_probs(preferences))]
