"""Where the numbers of a run's models come from: its keys, a preset's name, or the directory of the weights.

A directory or preset says everything but how the model is computed with; a key that says otherwise is refused.
Reads descriptions, no weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxflow.config.schema import Config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.description import describe_directory
from jaxflow.models.presets import preset

# What the config alone decides: how a model is computed with, and what it is padded with for its mesh.
_OWN = ("compute_dtype", "remat", "head_padding")


@dataclasses.dataclass(frozen=True)
class _Shape:
    decoder: DecoderConfig
    origin: str  # for messages


def with_models(
    config: Config, tree: Mapping[str, Any], followers: Sequence[str], stored: bool, problems: list[str]
) -> Config:
    """Fill in the models that the config leaves to a preset, to a directory of weights or to the actor's.

    `tree` holds the keys that were set, `followers` the sections whose model follows the actor's. With `stored`
    false neither presets nor directories are asked: the config is one that was resolved and saved. Contradictions
    are added to `problems`; UserError where a preset or directory cannot be read.
    """
    actor = config.actor.model
    shape = _given("actor", config.actor, problems) if stored else None
    if shape is not None:
        default = DecoderConfig()
        asked = [key for key in vars(actor) if vars(actor)[key] != vars(default)[key]]
        problems += _contradictions("actor", actor, asked, shape)
        actor = _filled(shape.decoder, actor)
        config = dataclasses.replace(config, actor=dataclasses.replace(config.actor, model=actor))
    for section in followers:
        group = vars(config)[section]
        own: DecoderConfig = actor if group.model is None else group.model
        asked = () if group.model is None else _set_keys(tree[section]["model"])
        shape = _given(section, group, problems) if stored else None
        followed = dataclasses.replace(actor, **{key: vars(own)[key] for key in asked})
        if shape is not None:
            problems += _contradictions(section, own, asked, shape)
            followed = _filled(shape.decoder, followed)
        if shape is not None or group.model is not None:
            config = dataclasses.replace(config, **{section: dataclasses.replace(group, model=followed)})
    return config


def _set_keys(model: Mapping[str, Any]) -> list[str]:
    return [key for key, value in model.items() if value is not None]


def _filled(stored: DecoderConfig, own: DecoderConfig) -> DecoderConfig:
    return dataclasses.replace(stored, **{key: vars(own)[key] for key in _OWN})


def _given(section: str, group: Any, problems: list[str]) -> _Shape | None:
    """Return the shape that a section's preset or weights say; None where neither does."""
    named = _Shape(preset(group.preset), f"{section}.preset {group.preset}") if group.preset else None
    directory = Path(group.weights)
    # A directory that is missing is reported with the other files.
    if not group.weights or not directory.is_dir():
        return named
    stored = _Shape(describe_directory(directory).decoder, f"{section}.weights {directory}")
    if named is not None:
        # A vocabulary may have been extended since.
        keys = [key for key in vars(stored.decoder) if key != "vocabulary_size"]
        problems += [
            f"{section}.preset: its {difference}"
            for difference in _differences(named.decoder, stored, [key for key in keys if key not in _OWN])
        ]
    return stored


def _contradictions(section: str, own: DecoderConfig, asked: Collection[str], shape: _Shape) -> Iterator[str]:
    keys = [key for key in asked if key not in _OWN]
    return (
        f"{section}.model.{difference}; leave the key out" for difference in _differences(own, shape, keys)
    )


def _differences(own: DecoderConfig, shape: _Shape, keys: Collection[str]) -> Iterator[str]:
    for key in keys:
        if vars(own)[key] != vars(shape.decoder)[key]:
            yield f"{key} = {vars(own)[key]}, but {shape.origin} has {vars(shape.decoder)[key]}"
