"""verl's LoRA keys: of the FSDP engine, and of Megatron's in a group of their own. Knows no other key of a model."""

from __future__ import annotations

from collections.abc import Callable

from jaxflow.port.adapters import HOW, targets_of
from jaxflow.port.table import Idle, Is, Key, Outcome, Setting, Values
from jaxflow.port.verl.sizes import MODEL, has_critic, is_megatron

_CRITIC = "critic.model"
_MEGATRON_MODULES = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
_NO_LOADING = (
    "jaxflow begins with fresh adapters",
    "merge it into the weights: python -m jaxflow.convert import HF_DIR OUT --adapter PEFT_DIR",
)
_INSIDE = "no counterpart in jaxflow's adapters"


def _keys(model: str) -> tuple[Key, ...]:
    return (
        Key(f"{model}.lora_rank", 0),
        Key(f"{model}.lora_alpha", 16),
        Key(f"{model}.target_modules", "all-linear"),
        Key(f"{model}.exclude_modules", None),
        Key(f"{model}.lora_adapter_path", None, (None,), *_NO_LOADING),
        Key(f"{model}.lora.rank", 0),
        Key(f"{model}.lora.alpha", 32),
        Key(f"{model}.lora.target_modules", _MEGATRON_MODULES),
        Key(f"{model}.lora.exclude_modules", []),
        Key(f"{model}.lora.adapter_path", None, (None,), *_NO_LOADING),
        Key(f"{model}.lora.dropout", 0.0, (0.0,), "jaxflow's adapters have no dropout", "leave it at 0"),
        Key(f"{model}.lora.type", "lora", ("lora",), "jaxflow has plain LoRA", "choose lora"),
        Key(f"{model}.lora.merge", False, None, "jaxflow always merges adapters for the rollout"),
        *(
            Key(f"{model}.lora.{name}", default, None, _INSIDE)
            for name, default in (
                ("dropout_position", "pre"),
                ("lora_A_init_method", "xavier"),
                ("lora_B_init_method", "zero"),
                ("a2a_experimental", False),
                ("dtype", None),
                ("freeze_vision_model", True),
                ("freeze_vision_projection", True),
                ("freeze_language_model", True),
                ("fully_sharded_loras", False),
            )
        ),
    )


def _outcome(model: str, which: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        if model == _CRITIC and not has_critic(values):
            return Idle("there is no critic")
        own = f"{model}.lora." if is_megatron(values) else f"{model}.lora_"
        rank = values[f"{own}rank"]
        if which == "rank":
            return Is(rank)
        if rank == 0:
            return Idle("the rank is 0")
        if which == "alpha":
            return Is(float(values[f"{own}alpha"]))
        place = f"{model}.lora" if is_megatron(values) else model
        return targets_of(values[f"{place}.target_modules"], values[f"{place}.exclude_modules"] or [])

    return outcome


def _settings(section: str, model: str) -> tuple[Setting, ...]:
    modules = (f"{model}.target_modules", f"{model}.lora.target_modules")
    excluded = (f"{model}.exclude_modules", f"{model}.lora.exclude_modules")
    both = "the same; lora.… with Megatron"
    return (
        Setting(
            f"{section}.lora.rank",
            (f"{model}.lora_rank", f"{model}.lora.rank"),
            both,
            _outcome(model, "rank"),
        ),
        Setting(
            f"{section}.lora.alpha",
            (f"{model}.lora_alpha", f"{model}.lora.alpha"),
            both,
            _outcome(model, "alpha"),
        ),
        Setting(f"{section}.lora.targets", (*modules, *excluded), HOW, _outcome(model, "targets")),
    )


KEYS: tuple[Key, ...] = (*_keys(MODEL), *_keys(_CRITIC))
SETTINGS: tuple[Setting, ...] = (*_settings("actor", MODEL), *_settings("critic", _CRITIC))
