"""Weights of either kind as what they have in common: named tensors in a checkpoint's layout, read one at a time.

Knows files, no command line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxflow.config import from_json
from jaxflow.convert.adapted import Adapted
from jaxflow.engine.adapter_files import holds_adapters
from jaxflow.engine.checkpoint import SavedArrays
from jaxflow.models.description import OWN_FILE, Description, describe_directory, is_checkpoint
from jaxflow.models.weight_names import Weight, weights_of
from jaxflow.models.weights_in import open_checkpoint
from jaxflow.models.weights_out import Entries
from jaxflow.run_directory import RunDirectory
from jaxflow.types import UserError

ROLES = ("actor", "critic", "cost_critic", "reward", "cost")
"""Roles of a run that have weights of their own."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of stored weights."""

    shape: tuple[int, ...]
    dtype: str  # NumPy's name
    file: str  # that holds it, below the directory; "" where it is a part of a stacked array


@dataclasses.dataclass(frozen=True)
class Stored:
    """A directory of weights."""

    directory: Path
    description: Description
    tensors: Mapping[str, Tensor]  # by a checkpoint's names
    read: Callable[[str], np.ndarray]


def open_stored(directory: Path) -> Stored:
    """Open weights of jaxflow or a Hugging Face checkpoint; UserError where it is neither or damaged."""
    description = describe_directory(directory)
    if holds_adapters(directory):
        return _open_adapted(directory)
    if not (directory / OWN_FILE).is_file() and is_checkpoint(directory):
        held = open_checkpoint(directory).tensors
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        tensors = {
            name: Tensor(tensor.shape, names.get(tensor.dtype, tensor.dtype), tensor.file.name)
            for name, tensor in held.items()
        }
        return Stored(directory, description, tensors, lambda name: np.asarray(held[name].mapped()))
    entries, types = own_entries(directory)
    dtypes = {path: has.partition("[")[0] for path, has in types.items()}
    return _of_entries(directory, description, entries, dtypes)


def _open_adapted(directory: Path) -> Stored:
    """Open adapters and their base as the weights that they merge into."""
    adapted = Adapted(directory)
    paths = [weight.path for weight in weights_of(adapted.description.decoder, adapted.description.head)]
    entries = adapted.merged(any_entries(adapted.base))
    return _of_entries(directory, adapted.description, entries, dict.fromkeys(paths, "float32"))


def any_entries(directory: Path) -> Entries:
    """Return how to read entries of weights of either kind, each in the weight's own layout."""
    if (directory / OWN_FILE).is_file() or not is_checkpoint(directory):
        return own_entries(directory)[0]
    stored = open_stored(directory)

    def entry(weight: Weight, index: tuple[int, ...]) -> np.ndarray:
        name = weight.name(index)
        if name not in stored.tensors:
            raise UserError(f"{directory}: holds no {name}")
        out = np.zeros(weight.shape[len(weight.stack) :], np.float32)
        weight.cut(stored.read(name), (slice(None),) * out.ndim, out)
        return out

    return entry


def _of_entries(
    directory: Path, description: Description, entries: Entries, dtypes: Mapping[tuple[str, ...], str]
) -> Stored:
    places: dict[str, tuple[Weight, tuple[int, ...]]] = {
        name: (weight, index)
        for weight in weights_of(description.decoder, description.head)
        for index, name in weight.tensors()
    }
    tensors = {
        name: Tensor(weight.tensor_shape, dtypes[weight.path], "") for name, (weight, _) in places.items()
    }

    def read(name: str) -> np.ndarray:
        weight, index = places[name]
        return weight.restore(entries(weight, index))

    return Stored(directory, description, tensors, read)


def own_entries(directory: Path) -> tuple[Entries, dict[tuple[str, ...], str]]:
    """Return how to read entries of jaxflow's own weights, and the type of each weight by its path.

    Raises UserError where a weight that the description asks for is not there, or has another shape.
    """
    description = describe_directory(directory)
    weights = weights_of(description.decoder, description.head)
    parts = {
        part: SavedArrays(directory / part) for part in dict.fromkeys(weight.path[0] for weight in weights)
    }
    types = {}
    for weight in weights:
        part, name = weight.path[0], "/".join(weight.path[1:])
        has = parts[part].types.get(name, "nothing")
        if not has.endswith(f"[{','.join(map(str, weight.shape))}]"):
            raise UserError(f"{directory / part}: {name} is {has}, expected {list(weight.shape)}")
        types[weight.path] = has

    def entry(weight: Weight, index: tuple[int, ...]) -> np.ndarray:
        return parts[weight.path[0]].read("/".join(weight.path[1:]), index)

    return entry, types


def role_of(name: str) -> str:
    """Return a tensor's name with layers and experts left open."""
    return re.sub(r"\.\d+\.", ".*.", name)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the weights to export lie, and what the run they are of says beside them."""

    weights: Path
    tokenizer: Path | None  # of the run
    like: Path | None  # the checkpoint that the run began from


def find_source(directory: Path, role: str, step: int | None) -> Source:
    """Return the weights of a role in a run's folder after a step, or the directory itself where it holds weights.

    Without a step the newest checkpoint counts, and where there is none the weights before the first step. Raises
    UserError where there are none.
    """
    if not any((directory / part).is_dir() for part in ("initial", "checkpoints")):
        if step is not None:
            raise UserError(f"{directory}: is not the folder of a run, so it has no steps; leave --step out")
        return Source(directory, None, None)
    run = RunDirectory(directory, 1)
    tree = run.read_config()
    if tree is None:
        raise UserError(f"{directory}: the run has no config.json")
    config = from_json(tree)
    sections = {
        "actor": config.actor.weights,
        "critic": config.critic.weights,
        "reward": config.reward.weights,
    }
    given = Path(sections[role]) if sections[role] else None
    tokenizer = Path(config.data.tokenizer) if config.data.tokenizer else None
    began = given if given is not None else Path(config.actor.weights) if config.actor.weights else None
    like = began if began is not None and is_checkpoint(began) else None
    checkpoint = None if step == 0 else run.latest() if step is None else run.at(step)
    # A reward model is never trained: its weights are those of the beginning.
    if checkpoint is not None and (checkpoint.path / role).is_dir():
        saved = checkpoint.path / role
        adapted = (saved / "adapters").is_dir()
        return Source(saved / ("adapters" if adapted else "weights"), tokenizer, like)
    initial = run.initial()
    if initial is not None and (initial / role).is_dir():
        return Source(initial / role, tokenizer, like)
    if given is not None:
        return Source(given, tokenizer, like)
    raise UserError(
        f"{directory}: holds no weights of the {role}{'' if step is None else f' after step {step}'}"
    )
