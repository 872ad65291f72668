"""What waits in host memory: verl's flags of each engine, and the roles of jaxflow's pool. Knows no sizes."""

from __future__ import annotations

import dataclasses

from jaxflow.port.table import Idle, Is, Key, Outcome, Refused, Setting, Values, cast_of
from jaxflow.port.verl.rule import dataflow_name
from jaxflow.port.verl.sizes import ACTOR, REFERENCE, has_reference, is_megatron

_JUDGE = "reward.reward_model"
_OFFLOAD = "cluster.pools.main.offload"
_OPTIMIZER, _WEIGHTS = "optimizer state", "weights"


@dataclasses.dataclass(frozen=True)
class _Flag:
    """One flag of verl's, of one role in one engine."""

    key: str
    role: str  # jaxflow's name
    what: str  # _OPTIMIZER or _WEIGHTS: what waits
    megatron: bool | None  # the engine that reads it; None: whichever the run has

    def idle(self, values: Values) -> Idle | Refused | None:
        """Say why there is nothing to do, or that the value cannot be read; None where it asks for something."""
        asked = values[self.key]
        if not isinstance(asked, bool | None):
            return Refused(f"cannot be read: {self.key} = {asked!r}", "say true or false")
        if not asked:
            return Idle("on the devices, as jaxflow has it by default")
        if self.megatron is not None and self.megatron != is_megatron(values):
            ours, other = ("Megatron", "FSDP") if self.megatron else ("FSDP", "Megatron")
            return Idle(f"of {ours}, and this run trains with {other}")
        if not _holds_weights(values, self.role):
            return Idle(f"no {self.role} of this run holds weights")
        return None

    def without_counterpart(self, values: Values) -> Idle | Refused | None:
        """Judge the flag for the weights of a role that is trained: those stay on the devices."""
        return self.idle(values) or Refused(
            f"jaxflow keeps the weights of a trained role ({self.role}) on its devices",
            f"add {self.role!r} to {_OFFLOAD}, so that its {_OPTIMIZER} waits in host memory, or raise mesh.fsdp;"
            " --plan says whether it fits",
        )


def _holds_weights(values: Values, role: str) -> bool:
    placed = cast_of(dataflow_name(values), has_reference(values))
    if role not in placed.value:
        return False
    return role != "reward" or bool(values[f"{_JUDGE}.enable"])


_WAITING = (
    _Flag(f"{ACTOR}.fsdp_config.optimizer_offload", "actor", _OPTIMIZER, False),
    _Flag(f"{ACTOR}.megatron.optimizer_offload", "actor", _OPTIMIZER, True),
    _Flag("critic.fsdp.optimizer_offload", "critic", _OPTIMIZER, False),
    _Flag("critic.megatron.optimizer_offload", "critic", _OPTIMIZER, True),
    _Flag(f"{REFERENCE}.fsdp_config.param_offload", "reference", _WEIGHTS, False),
    _Flag(f"{REFERENCE}.megatron.param_offload", "reference", _WEIGHTS, True),
    _Flag(f"{_JUDGE}.model.fsdp_config.param_offload", "reward", _WEIGHTS, None),
    _Flag(f"{_JUDGE}.megatron.param_offload", "reward", _WEIGHTS, None),
)
_STAYING = (
    _Flag(f"{ACTOR}.fsdp_config.param_offload", "actor", _WEIGHTS, False),
    _Flag(f"{ACTOR}.megatron.param_offload", "actor", _WEIGHTS, True),
    _Flag("critic.fsdp.param_offload", "critic", _WEIGHTS, False),
    _Flag("critic.megatron.param_offload", "critic", _WEIGHTS, True),
)

KEYS: tuple[Key, ...] = (
    *(Key(flag.key, False, judge=flag.idle) for flag in _WAITING),
    *(
        Key(
            flag.key,
            False,
            (False, None),
            "the weights of a trained role stay on its devices",
            f"{_OFFLOAD} takes its {_OPTIMIZER}",
            judge=flag.without_counterpart,
        )
        for flag in _STAYING
    ),
    *(
        Key(f"{REFERENCE}.{engine}.optimizer_offload", False, None, "the reference is frozen: no optimizer")
        for engine in ("fsdp_config", "megatron")
    ),
)


def _offload(values: Values) -> Outcome:
    asked = {flag.role: flag.what for flag in _WAITING if flag.idle(values) is None}
    return Is(tuple(asked), ", ".join(f"{role}: {what}" for role, what in asked.items()))


SETTINGS: tuple[Setting, ...] = (
    Setting(
        _OFFLOAD,
        tuple(flag.key for flag in _WAITING),
        "the role, where it is true and the run has the role",
        _offload,
        told_under_each=True,
    ),
)
