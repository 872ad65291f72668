"""What an algorithm says of itself: its script and the roles that play in it. Knows no process."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from jaxflow.algorithms.advantages import ESTIMATORS
from jaxflow.dataflow.roles import NoPretraining, NoReference, Roles
from jaxflow.types import Future, Metrics, Prompts

# Not a role, but what the controller adds to those of a script.
_FURTHER_PROMPTS = "further_prompts"

BUILT_IN_ROLES = tuple(role for role in Roles.__annotations__ if role != _FURTHER_PROMPTS)
"""Roles that every algorithm can cast without bringing a class along."""

# Roles that a script can ask although the config places them in no pool, and who then answers with nothing.
_ABSENT: Mapping[str, Any] = {"reference": NoReference(), "pretraining": NoPretraining()}

# What every run asks for answers to the validation prompts, whatever it learns by.
_VALIDATING = ("actor", "reward")


@dataclasses.dataclass(frozen=True)
class Dataflow:
    """An algorithm: one step of it as a script, and its cast.

    Called with a handle for each role, it runs one step: it returns at once with futures of the step's metrics.

    An optional role plays where the config puts it into a pool, so that no model is held that no formula reads;
    where it does not, its calls give None.

    Raises:
      ValueError: the cast names a role twice, one that has no class, or lacks one that validation needs; a class is
        brought along for a role outside the cast; or a role is optional that is outside it or cannot be absent.
    """

    step: Callable[[Any, Future[Prompts]], list[Future[Metrics]]]  # (a role per attribute, prompts)
    cast: tuple[str, ...]  # names of the roles that the script asks
    roles: Mapping[str, type] = dataclasses.field(default_factory=dict)  # classes brought along, by role name
    optional: tuple[str, ...] = ()  # roles of the cast that play only where a pool has them
    estimators: tuple[str, ...] = ESTIMATORS  # that the script feeds with what they read; its own one first
    refills: bool = False  # it asks for further prompts where groups teach nothing

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

        strange = [role for role in self.optional if role not in self.cast or role not in _ABSENT]
        if strange:
            raise ValueError(
                f"{', '.join(strange)} cannot be optional: it must be in the cast and one of {', '.join(_ABSENT)}"
            )

    def playing(self, placed: Collection[str]) -> tuple[str, ...]:
        """Return the roles of the cast that play in a run whose pools have these roles."""
        return tuple(role for role in self.cast if role in placed or role not in self.optional)

    def __call__(
        self,
        groups: Mapping[str, Any],
        prompts: Future[Prompts],
        further_prompts: Iterable[Future[Prompts]] = (),
    ) -> list[Future[Metrics]]:
        """Run one step with these handles by role name; handles of roles outside the cast stay unseen.

        `further_prompts` are drawn while the script finds groups that teach nothing.
        """
        present = {role: groups[role] if role in groups else _ABSENT[role] for role in self.cast}
        if self.refills:
            present[_FURTHER_PROMPTS] = further_prompts
        return self.step(types.SimpleNamespace(**present), prompts)
