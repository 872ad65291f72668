"""Algorithms as scripts: each a plain function of roles and a batch of prompts, found by name."""

import difflib
from collections.abc import Mapping

from jaxflow.dataflow.declaration import BUILT_IN_ROLES, Dataflow
from jaxflow.dataflow.grpo import grpo
from jaxflow.dataflow.ppo import ppo
from jaxflow.dataflow.remax import remax
from jaxflow.dataflow.safe_rlhf import safe_rlhf
from jaxflow.types import UserError
from jaxflow.user_code import load_from_file

__all__ = ["BUILT_IN_ROLES", "DATAFLOWS", "Dataflow", "load_dataflow"]

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
        estimators=(
            "grpo",
            "grpo_passk",
            "reinforce_plus_plus",
            "reinforce_plus_plus_baseline",
            "rloo",
            "opo",
            "gpg",
            "gdpo",
        ),
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
