"""What in directories of weights cannot be. Reads headers of files, no weights but a head that may repeat a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxflow.batch_algebra import with_vocabulary
from jaxflow.config import Config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.description import describe_directory, is_checkpoint
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.weights_in import plan_reading
from jaxflow.placement import taught_judges
from jaxflow.types import UserError


def weight_problems(config: Config, vocabulary_size: int) -> Iterator[str]:
    """Say which weights end in the wrong head, and which tensors have no place in their model or are not there."""
    asked: list[tuple[str, str, DecoderConfig, str, tuple[str, ...]]] = [
        ("actor", config.actor.weights, config.actor.model, TOKENS, (TOKENS,)),
        ("critic", config.critic.weights, config.critic_model, SCALAR, (SCALAR, TOKENS)),
    ]
    judges = (("reward", config.reward, config.reward_model), ("cost", config.cost, config.cost_model))
    taught = taught_judges(config)
    asked += [
        (section, group.weights, model, SCALAR, (SCALAR,))
        for section, group, model in judges
        if group.kind == "model" or section in taught
    ]
    for section, weights, model, head, heads in asked:
        directory = Path(weights)
        if not weights or not directory.is_dir():
            continue
        try:
            stored = describe_directory(directory)
            if stored.head not in heads:
                ends = {TOKENS: "a distribution over tokens", SCALAR: "one number"}
                yield f"{section}.weights: {directory} ends in {ends[stored.head]}, not in {ends[head]}"
            elif is_checkpoint(directory):
                plan_reading(directory, with_vocabulary(model, vocabulary_size), head, ("backbone", "head"))
        except UserError as error:
            yield f"{section}.weights: {error}"
