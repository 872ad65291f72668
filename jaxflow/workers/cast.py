"""Which class plays which role in a run. Knows no process and no transport."""

from __future__ import annotations

from collections.abc import Mapping

from jaxflow.config import Config
from jaxflow.dataflow import load_dataflow
from jaxflow.workers.constraint import Cost, CostModel, Pretraining
from jaxflow.workers.model_free_roles import Estimator
from jaxflow.workers.reward import Reward
from jaxflow.workers.reward_model import RewardModel, Verifier
from jaxflow.workers.roles import Actor, CostCritic, Critic, Reference, Student
from jaxflow.workers.weight_exchange import RolloutGenerator

_BUILT_IN: Mapping[str, type] = {
    "actor": Actor,
    "cost": Cost,
    "cost_critic": CostCritic,
    "critic": Critic,
    "estimator": Estimator,
    "generator": RolloutGenerator,
    "pretraining": Pretraining,
    "reference": Reference,
    "reward": Reward,
    "student": Student,
    "verifier": Verifier,
}


def role_class(config: Config, role: str) -> type:
    """Return the class of a role: one that the algorithm brings along, or the built-in one."""
    own = load_dataflow(config.algorithm.name).roles
    if role in own:
        return own[role]
    if role == "reward" and config.reward.kind == "model":
        return RewardModel
    if role == "cost" and config.cost.kind == "model":
        return CostModel
    return _BUILT_IN[role]
