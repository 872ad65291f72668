"""Which class plays which role in a run. Knows no process and no transport."""

from __future__ import annotations

from collections.abc import Mapping

from jaxflow.config import Config
from jaxflow.dataflow import PROMPTS, load_dataflow
from jaxflow.workers.constraint import Cost, CostModel, Pretraining
from jaxflow.workers.learners import CostLearner, Imitator, KTOLearner, Preferrer, RewardLearner
from jaxflow.workers.model_free_roles import Estimator
from jaxflow.workers.reward import Reward
from jaxflow.workers.reward_model import RewardModel, Verifier
from jaxflow.workers.roles import Actor, CostCritic, Critic, Reference, Student
from jaxflow.workers.weight_exchange import RolloutGenerator

_BUILT_IN: Mapping[str, type] = {
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

_TAUGHT: Mapping[str, type] = {"reward": RewardLearner, "cost": CostLearner}
# By what a step is given.
_ACTORS: Mapping[str, type] = {
    PROMPTS: Actor,
    "demonstrations": Imitator,
    "judgements": KTOLearner,
    "preferences": Preferrer,
    "safety_preferences": Preferrer,
}


def role_class(config: Config, role: str) -> type:
    """Return the class of a role: one that the algorithm brings along, or the built-in one."""
    dataflow = load_dataflow(config.algorithm.name)
    if role in dataflow.roles:
        return dataflow.roles[role]
    if role in dataflow.taught:
        return _TAUGHT[role]
    if role == "actor":
        return _ACTORS[dataflow.batches]
    if role == "reward" and config.reward.kind == "model":
        return RewardModel
    if role == "cost" and config.cost.kind == "model":
        return CostModel
    return _BUILT_IN[role]
