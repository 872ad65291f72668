"""Algorithms as scripts: each a plain function of roles and a batch of prompts, found by name."""

import difflib
from collections.abc import Mapping

from jaxflow.dataflow.declaration import BUILT_IN_ROLES, Dataflow
from jaxflow.dataflow.ppo import ppo
from jaxflow.types import UserError
from jaxflow.user_code import load_from_file

__all__ = ["BUILT_IN_ROLES", "DATAFLOWS", "Dataflow", "load_dataflow"]

DATAFLOWS: Mapping[str, Dataflow] = {
    "ppo": Dataflow(step=ppo, cast=("actor", "critic", "reference", "reward", "estimator")),
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
