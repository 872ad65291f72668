"""Algorithms as scripts: each a plain function of roles and a batch of prompts, found by name."""

import difflib
from collections.abc import Mapping

from jaxflow.algorithms.advantages import CRITIC_FREE
from jaxflow.dataflow.cost_model import cost_model, cost_model_held_out
from jaxflow.dataflow.declaration import BUILT_IN_ROLES, PAIRS, PROMPTS, Dataflow
from jaxflow.dataflow.dpo import dpo, dpo_held_out
from jaxflow.dataflow.grpo import grpo
from jaxflow.dataflow.kto import kto, kto_held_out
from jaxflow.dataflow.ppo import ppo
from jaxflow.dataflow.remax import remax
from jaxflow.dataflow.reward_model import reward_model, reward_model_held_out
from jaxflow.dataflow.safe_rlhf import safe_rlhf
from jaxflow.dataflow.sft import sft, sft_held_out
from jaxflow.types import UserError
from jaxflow.user_code import load_from_file

__all__ = ["BUILT_IN_ROLES", "DATAFLOWS", "PAIRS", "PROMPTS", "Dataflow", "load_dataflow"]

DATAFLOWS: Mapping[str, Dataflow] = {
    "ppo": Dataflow(
        step=ppo,
        cast=("actor", "critic", "reference", "reward", "estimator"),
        optional=("reference",),
        estimators=("gae",),
    ),
    "remax": Dataflow(
        step=remax,
        cast=("actor", "reference", "reward", "estimator"),
        optional=("reference",),
        estimators=("remax",),
    ),
    "grpo": Dataflow(
        step=grpo,
        cast=("actor", "reference", "reward", "estimator"),
        optional=("reference",),
        estimators=CRITIC_FREE,
        refills=True,
    ),
    "safe_rlhf": Dataflow(
        step=safe_rlhf,
        cast=(
            "actor",
            "critic",
            "cost_critic",
            "reference",
            "reward",
            "cost",
            "estimator",
            "pretraining",
        ),
        optional=("reference", "pretraining"),
        estimators=("gae",),
    ),
    "sft": Dataflow(
        step=sft,
        cast=("actor", "reward"),
        optional=("reward",),
        batches="demonstrations",
        held_out=sft_held_out,
    ),
    "reward_model": Dataflow(
        step=reward_model,
        cast=("reward",),
        taught=("reward",),
        batches="preferences",
        held_out=reward_model_held_out,
    ),
    "cost_model": Dataflow(
        step=cost_model,
        cast=("cost",),
        taught=("cost",),
        batches="safety_preferences",
        held_out=cost_model_held_out,
    ),
    "dpo": Dataflow(
        step=dpo,
        cast=("actor", "reference", "reward"),
        optional=("reward",),
        batches="preferences",
        held_out=dpo_held_out,
    ),
    "kto": Dataflow(
        step=kto,
        cast=("actor", "reference", "reward"),
        optional=("reward",),
        batches="judgements",
        held_out=kto_held_out,
    ),
}
"""`algorithm.name` in a config -> the algorithm."""


def load_dataflow(name: str) -> Dataflow:
    """Return a built-in algorithm by its name, or the one that "path.py:NAME" of a user's file defines.

    Raises:
      UserError: neither names an algorithm, or running the file fails (the line is named).
    """
    if name in DATAFLOWS:
        return DATAFLOWS[name]
    if ":" not in name:
        alike = difflib.get_close_matches(name, DATAFLOWS, n=1)
        hint = f"did you mean {alike[0]!r}? " if alike else ""
        raise UserError(
            f"algorithm.name = {name!r}: {hint}it is one of: {', '.join(DATAFLOWS)}; or path.py:NAME of a file "
            "of your own"
        )
    found = load_from_file(name, "algorithm.name", "algorithm")
    if not isinstance(found, Dataflow):
        file, _, attribute = name.rpartition(":")
        raise UserError(
            f"{file}: {attribute!r} is a {type(found).__name__}; algorithm.name must name a Dataflow(step, cast, roles)"
        )
    return found
