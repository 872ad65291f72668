"""A policy that learns from responses that were wanted or not: KTO (arXiv 2402.01306). Knows roles by what they do."""

from __future__ import annotations

from jaxflow.dataflow.roles import JudgedRoles
from jaxflow.types import Future, Judgements, Metrics


def kto(roles: JudgedRoles, judgements: Future[Judgements]) -> list[Future[Metrics]]:
    """Run one step: what is gained or lost counts from how far the policy has moved from the reference."""
    mismatched = roles.actor.mismatched(judgements)
    points = roles.actor.reference_points(
        roles.actor.log_probs(mismatched), roles.reference.log_probs(mismatched)
    )
    return [roles.actor.update(judgements, roles.reference.log_probs(judgements), points)]


def kto_held_out(roles: JudgedRoles, judgements: Future[Judgements]) -> list[Future[Metrics]]:
    """Say what the loss makes of responses that were never learnt from."""
    mismatched = roles.actor.mismatched(judgements)
    points = roles.actor.reference_points(
        roles.actor.log_probs(mismatched), roles.reference.log_probs(mismatched)
    )
    return [roles.actor.measure(judgements, roles.reference.log_probs(judgements), points)]
