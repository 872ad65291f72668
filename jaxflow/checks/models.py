"""What in the shape of a model cannot be. Knows models and the tokenizer's size, no mesh."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from jaxflow.config import Config, LoraConfig
from jaxflow.models.adapters import ATTENTION_TARGETS, MLP_TARGETS, TARGETS
from jaxflow.models.decoder_config import DecoderConfig


def models(config: Config) -> Iterator[tuple[str, DecoderConfig]]:
    """Yield the models that the config shapes, under their keys."""
    yield "actor.model", config.actor.model
    if config.critic.model is not None:
        yield "critic.model", config.critic.model
    if config.reward.model is not None:
        yield "reward.model", config.reward.model
    if config.cost.model is not None:
        yield "cost.model", config.cost.model


def adapter_problems(config: Config) -> Iterator[str]:
    """Say which weights cannot have adapters, and which routers no loss can even out."""
    own_shape = not config.critic_model.same_backbone(config.actor.model)
    if config.critic.lora.rank > 0 and own_shape and not config.critic.weights:
        yield (
            f"critic.lora.rank = {config.critic.lora.rank}, but a critic of its own shape begins with random weights,"
            " which would never be trained; give critic.weights, or set the rank to 0"
        )
    for role, lora, model in (
        ("actor", config.actor.lora, config.actor.model),
        ("critic", config.critic.lora, config.critic_model),
    ):
        yield from _balance_problems(role, vars(config)[role].router_aux_loss_coefficient, lora, model)
        if lora.rank == 0:
            continue
        path = f"{role}.lora.targets"
        if not lora.targets:
            yield f"{path} is empty, and {role}.lora.rank = {lora.rank}: name weights, or set the rank to 0"
        for target in lora.targets:
            if target not in TARGETS:
                alike = difflib.get_close_matches(target, TARGETS, n=1)
                hint = f"did you mean {alike[0]!r}? " if alike else ""
                yield f"{path}: {target!r} is no weight that can be adapted; {hint}they are: {', '.join(TARGETS)}"
        experts = [target for target in lora.targets if target in MLP_TARGETS]
        if model.experts > 0 and experts:
            yield (
                f"{path}: {', '.join(experts)} are a mixture's experts, which cannot be adapted; leave"
                f" {', '.join(ATTENTION_TARGETS)}"
            )
        if lora.rank > model.width:
            yield f"{role}.lora.rank = {lora.rank} is above the model's width = {model.width}: nothing is low about it"


def _balance_problems(role: str, coefficient: float, lora: LoraConfig, model: DecoderConfig) -> Iterator[str]:
    path = f"{role}.router_aux_loss_coefficient = {coefficient:g}"
    if coefficient > 0.0 and model.experts == 0:
        yield f"{path} is of a mixture of experts, and the model has none: set it to 0"
    elif coefficient > 0.0 and lora.rank > 0:
        yield f"{path}: beside adapters ({role}.lora.rank = {lora.rank}) no router is trained; set it to 0"


def model_problems(path: str, model: DecoderConfig, vocabulary_size: int | None) -> Iterator[str]:
    if model.heads % model.kv_heads != 0:
        yield f"{path}.kv_heads = {model.kv_heads} does not divide {path}.heads = {model.heads}"
    if model.head_width % 2 != 0:
        yield f"{path}.head_width = {model.head_width}: rotary positions turn pairs; make it even"
    if model.rope_high_frequency_factor <= model.rope_low_frequency_factor:
        yield (
            f"{path}.rope_high_frequency_factor = {model.rope_high_frequency_factor:g} is not above"
            f" {path}.rope_low_frequency_factor = {model.rope_low_frequency_factor:g}; the Llama 3 pair is 4 and 1"
        )
    if model.sliding_window == 0 and (model.global_every > 0 or model.local_rope_theta > 0.0):
        key = "global_every" if model.global_every > 0 else "local_rope_theta"
        yield f"{path}.{key} is of local layers, but {path}.sliding_window = 0 makes none; set it, or {key} to 0"
    if model.experts > 0 and not 1 <= model.experts_per_token <= model.experts:
        yield (
            f"{path}.experts_per_token = {model.experts_per_token}: a token goes to at least 1 and at most all"
            f" {model.experts} experts"
        )
    if model.experts == 0 and model.experts_per_token > 0:
        yield f"{path}.experts_per_token = {model.experts_per_token}, but {path}.experts = 0; set both or none"
    if vocabulary_size is not None and 0 < model.vocabulary_size < vocabulary_size:
        yield (
            f"{path}.vocabulary_size = {model.vocabulary_size}, but the tokenizer has {vocabulary_size}"
            " tokens; set it to 0 (taken from the tokenizer) or to at least as many"
        )
