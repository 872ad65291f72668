"""What an algorithm says of itself: its script and the roles that play in it. Knows no process."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from jaxflow.algorithms.advantages import ESTIMATORS
from jaxflow.dataflow.roles import NoPretraining, NoReference, Roles
from jaxflow.types import Future, Metrics, Prompts

Script = Callable[[Any, Future[Any]], list[Future[Metrics]]]
"""(a role per attribute, a batch) -> the metrics of what it does."""

# Not a role, but what the controller adds to those of a script.
_FURTHER_PROMPTS = "further_prompts"

BUILT_IN_ROLES = tuple(role for role in Roles.__annotations__ if role != _FURTHER_PROMPTS)
"""Roles that every algorithm can cast without bringing a class along."""

# Roles that a script can ask although the config places them in no pool, and who then answers with nothing.
_ABSENT: Mapping[str, Any] = {"reference": NoReference(), "pretraining": NoPretraining()}

# What is asked for answers to the validation prompts.
_VALIDATING = ("actor", "reward")

PROMPTS = "prompts"
BATCHES = (PROMPTS, "demonstrations", "judgements", "preferences", "safety_preferences")
"""What a step may be given: prompts to answer, or rows with their responses; the last are pairs ordered by harm."""
PAIRS = ("preferences", "safety_preferences")
"""Those whose rows have two responses each."""


@dataclasses.dataclass(frozen=True)
class Dataflow:
    """An algorithm: one step of it as a script, and its cast.

    Called with a handle for each role, it runs one step: it returns at once with futures of the step's metrics.

    An optional role plays where the config puts it into a pool, so that no model is held that no formula reads;
    where it does not, its calls give None. A reward that is optional judges answers to the validation prompts.

    Raises:
      ValueError: the cast names a role twice, one that has no class, or lacks one that validation needs; a class is
        brought along for a role outside the cast; a role is optional or taught that is outside it or cannot be; or
        the batches are unknown.
    """

    step: Script  # one step of learning
    cast: tuple[str, ...]  # names of the roles that the script asks
    roles: Mapping[str, type] = dataclasses.field(default_factory=dict)  # classes brought along, by role name
    optional: tuple[str, ...] = ()  # roles of the cast that play only where a pool has them
    estimators: tuple[str, ...] = ESTIMATORS  # that the script feeds with what they read; its own one first
    refills: bool = False  # it asks for further prompts where groups teach nothing
    batches: str = PROMPTS  # one of BATCHES: what a step is given
    taught: tuple[str, ...] = ()  # of reward and cost: those that learn here, instead of judging
    # Measures rows held out, of the kind of the batches; None: answers tell enough
    held_out: Script | None = None

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
        if missing and self.held_out is None:
            raise ValueError(f"cast lacks {', '.join(missing)}: validation needs {' and '.join(_VALIDATING)}")
        absent = {*_ABSENT} if self.held_out is None else {*_ABSENT, "reward"}
        strange = [role for role in self.optional if role not in self.cast or role not in absent]
        if strange:
            raise ValueError(
                f"{', '.join(strange)} cannot be optional: it must be in the cast and one of {', '.join(absent)}"
            )
        if self.batches not in BATCHES:
            raise ValueError(f"batches = {self.batches!r}: it is one of {', '.join(BATCHES)}")
        unteachable = [
            role for role in self.taught if role not in self.cast or role not in ("reward", "cost")
        ]
        if unteachable:
            raise ValueError(
                f"{', '.join(unteachable)} cannot be taught: it must be in the cast and one of reward, cost"
            )

    def playing(self, placed: Collection[str]) -> tuple[str, ...]:
        """Return the roles of the cast that play in a run whose pools have these roles."""
        return tuple(role for role in self.cast if role in placed or role not in self.optional)

    def answers(self, placed: Collection[str]) -> bool:
        """Return whether such a run can answer the validation prompts and have its answers judged."""
        return set(_VALIDATING) <= set(self.playing(placed)) and "reward" not in self.taught

    def __call__(
        self,
        groups: Mapping[str, Any],
        batch: Future[Any],
        further_prompts: Iterable[Future[Prompts]] = (),
    ) -> list[Future[Metrics]]:
        """Run one step with these handles by role name; handles of roles outside the cast stay unseen.

        `further_prompts` are drawn while the script finds groups that teach nothing.
        """
        present = self._present(groups)
        if self.refills:
            present[_FURTHER_PROMPTS] = further_prompts
        return self.step(types.SimpleNamespace(**present), batch)

    def measure(self, groups: Mapping[str, Any], batch: Future[Any]) -> list[Future[Metrics]]:
        """Measure rows held out; nothing where the algorithm has no script for it."""
        if self.held_out is None:
            return []
        return self.held_out(types.SimpleNamespace(**self._present(groups)), batch)

    def _present(self, groups: Mapping[str, Any]) -> dict[str, Any]:
        known = {**_ABSENT, **groups}
        return {role: known[role] for role in self.cast if role in known}
