"""What an algorithm says of itself: its script and the roles that play in it. Knows no process."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

from jaxflow.dataflow.roles import Roles
from jaxflow.types import Future, Metrics, Prompts

BUILT_IN_ROLES = tuple(Roles.__annotations__)
"""Roles that every algorithm can cast without bringing a class along."""

# What every run asks for answers to the validation prompts, whatever it learns by.
_VALIDATING = ("actor", "reward")


@dataclasses.dataclass(frozen=True)
class Dataflow:
    """An algorithm: one step of it as a script, and its cast.

    Called with a handle for each role, it runs one step: it returns at once with futures of the step's metrics.

    Raises:
      ValueError: the cast names a role twice, one that has no class, or lacks one that validation needs; or a
        class is brought along for a role outside the cast.
    """

    step: Callable[[Any, Future[Prompts]], list[Future[Metrics]]]  # (a role per attribute, prompts)
    cast: tuple[str, ...]  # names of the roles that the script asks
    roles: Mapping[str, type] = dataclasses.field(default_factory=dict)  # classes brought along, by role name

    def __post_init__(self) -> None:
        if len(set(self.cast)) < len(self.cast):
            raise ValueError(f"cast names a role twice: {', '.join(self.cast)}")
        strangers = [role for role in self.cast if role not in {*BUILT_IN_ROLES, *self.roles}]
        if strangers:
            raise ValueError(
                f"cast has no class for {', '.join(strangers)}; give it in roles, or cast one of the built-in "
                f"roles: {', '.join(BUILT_IN_ROLES)}"
            )
        idle = [role for role in self.roles if role not in self.cast]
        if idle:
            raise ValueError(f"roles has classes for {', '.join(idle)}, which the cast does not name")
        missing = [role for role in _VALIDATING if role not in self.cast]
        if missing:
            raise ValueError(f"cast lacks {', '.join(missing)}: validation needs {' and '.join(_VALIDATING)}")

    def __call__(self, groups: Mapping[str, Any], prompts: Future[Prompts]) -> list[Future[Metrics]]:
        """Run one step with these handles by role name; handles of roles outside the cast stay unseen."""
        return self.step(types.SimpleNamespace(**{role: groups[role] for role in self.cast}), prompts)
