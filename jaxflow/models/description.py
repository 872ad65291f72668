"""What a directory of weights says of its model: jaxflow's own beside arrays, or a Hugging Face config.json.

Knows no array and no tensor.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

from jaxflow.models.config_json import read_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.tensor_files import has_tensors, read_json
from jaxflow.types import UserError

OWN_FILE, CONFIG_FILE = "decoder.json", "config.json"


@dataclasses.dataclass(frozen=True)
class Description:
    """The model whose weights lie in a directory."""

    decoder: DecoderConfig
    head: str  # families.TOKENS or SCALAR
    family: str  # of transformers; "" where the weights are jaxflow's own


def is_checkpoint(directory: Path) -> bool:
    """Return whether a directory is Hugging Face's rather than jaxflow's."""
    return (directory / CONFIG_FILE).is_file() or has_tensors(directory)


def write_description(directory: Path, decoder: DecoderConfig, head: str) -> None:
    """Write beside arrays which model they are."""
    tree = {"head": head, "decoder": dataclasses.asdict(decoder)}
    (directory / OWN_FILE).write_text(json.dumps(tree, indent=1), encoding="utf-8")


def describe_directory(directory: Path) -> Description:
    """Return which model's weights a directory holds.

    Raises UserError where it says none, cannot be read, or is of a model that jaxflow does not compute.
    """
    own = directory / OWN_FILE
    if own.is_file():
        return _own(own)
    of_run = any((directory / part).is_dir() for part in ("initial", "checkpoints"))
    if of_run and not has_tensors(directory):
        raise UserError(
            f"{directory}: is the folder of a run; weights lie deeper, in initial/actor or in"
            " checkpoints/step_…/actor/weights"
        )
    if not is_checkpoint(directory):
        raise UserError(f"{directory}: holds neither weights of jaxflow ({OWN_FILE}) nor a {CONFIG_FILE}")
    file = directory / CONFIG_FILE
    described = read_config(read_json(file), str(file))
    return Description(described.decoder, described.head, described.family.name)


def _own(file: Path) -> Description:
    tree = read_json(file)
    decoder, head = tree.get("decoder"), tree.get("head")
    kinds = typing.get_type_hints(DecoderConfig)
    if not isinstance(decoder, dict) or head not in (TOKENS, SCALAR):
        raise UserError(f"{file}: must hold decoder and head; it is damaged")
    wrong = [key for key, value in decoder.items() if key not in kinds or type(value) is not kinds[key]]
    if wrong:
        raise UserError(
            f"{file}: {', '.join(wrong)} cannot be read: another jaxflow wrote it, or it is damaged"
        )
    return Description(DecoderConfig(**decoder), head, "")
