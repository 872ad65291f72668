"""What in the shape of a model cannot be. Knows models and the tokenizer's size, no mesh."""

from __future__ import annotations

from collections.abc import Iterator

from jaxflow.config import Config
from jaxflow.models.decoder_config import DecoderConfig


def models(config: Config) -> Iterator[tuple[str, DecoderConfig]]:
    """Yield the models that the config shapes, under their keys."""
    yield "actor.model", config.actor.model
    if config.critic.model is not None:
        yield "critic.model", config.critic.model
    if config.reward.model is not None:
        yield "reward.model", config.reward.model


def model_problems(path: str, model: DecoderConfig, vocabulary_size: int | None) -> Iterator[str]:
    if model.heads % model.kv_heads != 0:
        yield f"{path}.kv_heads = {model.kv_heads} does not divide {path}.heads = {model.heads}"
    if model.head_width % 2 != 0:
        yield f"{path}.head_width = {model.head_width}: rotary positions turn pairs; make it even"
    if vocabulary_size is not None and 0 < model.vocabulary_size < vocabulary_size:
        yield (
            f"{path}.vocabulary_size = {model.vocabulary_size}, but the tokenizer has {vocabulary_size}"
            " tokens; set it to 0 (taken from the tokenizer) or to at least as many"
        )
