"""Names of adapted weights: modules of transformers and Megatron beside jaxflow's. Knows no dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxflow.config import LoraConfig
from jaxflow.port.table import Is, Outcome, Refused

_TARGETS: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("query",),
    "k_proj": ("key",),
    "v_proj": ("value",),
    "o_proj": ("output",),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
    "linear_qkv": ("query", "key", "value"),
    "linear_proj": ("output",),
    "linear_fc1": ("gate", "up"),
    "linear_fc2": ("down",),
}
_ALL = "all-linear"

HOW = "all-linear: jaxflow's seven; " + ", ".join(
    f"{old} → {' and '.join(new)}" for old, new in _TARGETS.items()
)


def targets_of(modules: str | Sequence[str], excluded: Sequence[str]) -> Outcome:
    """Return jaxflow's names of the adapted weights, in its order."""
    if modules == _ALL or list(modules) == [_ALL]:
        chosen = set(LoraConfig.targets)
    else:
        listed = [modules] if isinstance(modules, str) else list(modules)
        strangers = [name for name in listed if name not in _TARGETS]
        if strangers:
            return Refused(f"jaxflow adapts no {', '.join(strangers)}", f"choose of {', '.join(_TARGETS)}")
        chosen = {target for name in listed for target in _TARGETS[name]}
    left_out = {target for name in excluded for target in _TARGETS.get(name, ())}
    return Is(tuple(target for target in LoraConfig.targets if target in chosen - left_out))
