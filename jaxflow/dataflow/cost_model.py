"""Cost-model training on pairs with safety labels (Safe-RLHF, arXiv 2310.12773). Knows a learner by what it does."""

from __future__ import annotations

from jaxflow.dataflow.roles import CostLearnerRoles
from jaxflow.types import Future, Metrics, Preferences


def cost_model(roles: CostLearnerRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Run one step: learn which response is more harmful, and from where on one is unsafe."""
    return [roles.cost.update(preferences)]


def cost_model_held_out(roles: CostLearnerRoles, preferences: Future[Preferences]) -> list[Future[Metrics]]:
    """Say how well pairs that were never learnt from are ordered and labelled."""
    return [roles.cost.measure(preferences)]
