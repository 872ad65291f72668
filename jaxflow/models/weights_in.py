"""A Hugging Face checkpoint into a sharded layout: every shard reads its own slices of the files and nothing else.

No process ever holds the model: on the host there is one shard at a time. Knows no mesh; shardings are given.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxflow.models.config_json import Described, as_stored, read_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.description import CONFIG_FILE
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.tensor_files import DTYPES, StoredTensor, open_directory, read_json
from jaxflow.models.transformer import LanguageModel, Model, Params
from jaxflow.models.weight_names import (
    DERIVED_BUFFER,
    EMBEDDING,
    SCALAR_HEAD,
    SCALAR_HEAD_BIAS,
    TOKEN_HEAD,
    Weight,
    weights_of,
)
from jaxflow.types import UserError

_OF_PICTURES = ("vision_tower.", "multi_modal_projector.")
_NAMED = 5  # tensors spelled out in an error message
_COMPARED_BYTES = 2**26  # of two tensors at once


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its description and where its tensors lie; no data is read yet."""

    directory: Path
    described: Described
    tensors: Mapping[str, StoredTensor]  # of the decoder and its head, by the names of a decoder alone


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What reading weights took of this process."""

    directory: str
    bytes_read: int  # of the files, for this process's shards
    largest_buffer_bytes: int  # the largest shard: all of the model that the host holds at once
    seconds: float
    notes: tuple[str, ...]  # of the plan


def open_checkpoint(directory: Path) -> Checkpoint:
    """Open a directory of config.json and safetensors files.

    Raises UserError for an architecture or key that jaxflow does not compute, and for files that cannot be whole.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    tensors = open_directory(directory)
    file = directory / CONFIG_FILE
    described = read_config(read_json(file), str(file))
    if described.with_pictures:
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OF_PICTURES)}
        tensors = {name.removeprefix("language_model."): tensor for name, tensor in kept.items()}
    return Checkpoint(directory, described, tensors)


def head_of(model: Model) -> str:
    """Return what a model ends in."""
    return TOKENS if model.kind is LanguageModel else SCALAR


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a model's weights are read from a checkpoint: every tensor has its place, nothing is read yet."""

    checkpoint: Checkpoint
    weights: tuple[Weight, ...]
    zeros: frozenset[str]  # tensors that are not there and begin at zero
    notes: tuple[str, ...]  # what was decided where checkpoint and model end differently


def plan_reading(directory: Path, decoder: DecoderConfig, head: str, parts: Collection[str]) -> Plan:
    """Find a place for every tensor of a checkpoint in a decoder that ends in this head.

    `parts` are the top-level parts of the weights (`backbone`, `head`) that are wanted. Where the ends differ: a
    checkpoint with tied embeddings fills an untied head with the embedding table; a separate head is taken into a
    tied model only if it equals the table; a scalar head that a language model's checkpoint lacks begins at zero,
    and its token head is left out.

    Raises:
        UserError: the checkpoint is of another decoder, names are missing or left over, a tensor has another
            shape or dtype; all of them listed.
    """
    checkpoint = open_checkpoint(directory)
    _refuse_other_decoder(checkpoint, decoder, head)
    wanted = [weight for weight in weights_of(decoder, head) if weight.path[0] in parts]
    zeros, notes = set(), []
    if checkpoint.described.with_pictures:
        notes.append("what reads pictures in it is left out")
    own_head = any(weight.template == TOKEN_HEAD for weight in wanted)
    if own_head and checkpoint.described.decoder.tied_embeddings and TOKEN_HEAD not in checkpoint.tensors:
        notes.append("the embedding table was copied into the head of its own that the model has")
        wanted = [_reading(weight, TOKEN_HEAD, EMBEDDING) for weight in wanted]
    if head == SCALAR and "head" in parts and checkpoint.described.head == TOKENS:
        notes.append(f"{directory} ends in a distribution over tokens: the scalar head begins at zero")
        zeros.add(SCALAR_HEAD)
    _account(checkpoint, decoder, head, wanted, parts, zeros)
    return Plan(checkpoint, tuple(wanted), frozenset(zeros), tuple(notes))


def read_weights(
    directory: Path, model: Model, shardings: Any, parts: Collection[str]
) -> tuple[Params, ReadReport]:
    """Read these top-level parts of a checkpoint straight onto their shardings, as `plan_reading` says.

    Each weight is cast to the dtype that `model.shapes` says. Where `jax.distributed` spans several processes each
    reads its own shards. Raises UserError as `plan_reading` does.
    """
    started = time.monotonic()
    plan = plan_reading(directory, model.config, head_of(model), parts)
    reader = _Reader(plan.checkpoint.tensors, plan.zeros)
    params: dict[str, Any] = {}
    for weight in plan.weights:
        shape, sharding = _at(model.shapes, weight.path), _at(shardings, weight.path)
        _set(params, weight.path, reader.read(weight, shape, sharding))
    seconds = time.monotonic() - started
    return params, ReadReport(
        str(directory), reader.bytes_read, reader.largest_buffer_bytes, seconds, plan.notes
    )


def _reading(weight: Weight, name: str, instead: str) -> Weight:
    return dataclasses.replace(weight, template=instead) if weight.template == name else weight


def _refuse_other_decoder(checkpoint: Checkpoint, asked: DecoderConfig, head: str) -> None:
    has, wanted = vars(checkpoint.described.decoder), vars(as_stored(asked))
    # How the tokens' logits are made is nothing to a scalar head.
    of_end = ("tied_embeddings",) if head == TOKENS else ("tied_embeddings", "logit_softcap")
    differences = [
        f"{key}: the checkpoint has {has[key]}, the config {wanted[key]}"
        for key in has
        if key not in of_end and has[key] != wanted[key]
    ]
    if differences:
        raise UserError(
            f"{checkpoint.directory} holds another decoder than the config asks for:\n  "
            + "\n  ".join(differences)
        )


def _account(
    checkpoint: Checkpoint,
    decoder: DecoderConfig,
    head: str,
    wanted: Sequence[Weight],
    parts: Collection[str],
    zeros: Collection[str],
) -> None:
    """Refuse missing, unused and misshapen tensors, all at once."""
    tensors = checkpoint.tensors
    shapes = {name: weight.tensor_shape for weight in wanted for _, name in weight.tensors()}
    missing = [name for name in shapes if name not in tensors and name not in zeros]
    unused = [name for name in tensors if name not in shapes and not name.endswith(DERIVED_BUFFER)]
    left_out = set()
    if head == SCALAR or "head" not in parts:
        left_out.add(TOKEN_HEAD)
    if "head" not in parts:
        left_out |= {SCALAR_HEAD, SCALAR_HEAD_BIAS}
    elif head == TOKENS and decoder.tied_embeddings and _repeats(checkpoint, TOKEN_HEAD, EMBEDDING):
        left_out.add(TOKEN_HEAD)
    elif head == SCALAR and _is_zero(checkpoint, SCALAR_HEAD_BIAS):
        left_out.add(SCALAR_HEAD_BIAS)
    wrong = [
        f"{tensor.file}: tensor {name} is {tensor.dtype}{list(tensor.shape)}, expected {list(shapes[name])} in one"
        f" of {', '.join(DTYPES)}"
        for name, tensor in tensors.items()
        if name in shapes and (tensor.shape != shapes[name] or tensor.dtype not in DTYPES)
    ]
    problems = [
        *_counted("missing", missing),
        *_counted("without a place in the model", [name for name in unused if name not in left_out]),
        *_counted("of another shape or dtype", wrong),
    ]
    if problems:
        raise UserError(
            f"{checkpoint.directory}: its tensors are not the model's:\n  " + "\n  ".join(problems)
        )


def _counted(what: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return [f"{len(items)} {what}: {', '.join(items[:_NAMED])}{more}"]


def _repeats(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Return whether two tensors are there and the same, bit for bit."""
    if name not in checkpoint.tensors or other not in checkpoint.tensors:
        return False
    one, two = checkpoint.tensors[name], checkpoint.tensors[other]
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    left, right = one.mapped(), two.mapped()
    rows = max(1, _COMPARED_BYTES // max(1, left[0].nbytes))
    blocks = (slice(start, start + rows) for start in range(0, len(left), rows))
    return all(left[block].tobytes() == right[block].tobytes() for block in blocks)


def _is_zero(checkpoint: Checkpoint, name: str) -> bool:
    return name in checkpoint.tensors and not np.asarray(checkpoint.tensors[name].mapped(), np.float32).any()


class _Reader:
    """Reads weight by weight, a shard at a time, and counts."""

    def __init__(self, tensors: Mapping[str, StoredTensor], zeros: Collection[str]):
        self._tensors, self._zeros = tensors, zeros
        self.bytes_read = 0
        self.largest_buffer_bytes = 0

    def read(self, weight: Weight, shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> Array:
        if weight.shape != shape.shape:
            raise ValueError(
                f"{'.'.join(weight.path)}: {weight.shape} is described, the model has {shape.shape}"
            )
        devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(shape.shape).items():
            extent = tuple(part.indices(size)[:2] for part, size in zip(index, shape.shape, strict=True))
            devices.setdefault(extent, []).append(device)
        arrays = []
        for extent, holders in devices.items():
            shard = self._shard(weight, extent, shape.dtype)
            # Waited for, so that one shard at a time is on the host. Aliased, the host's copy would live on.
            arrays += [jax.device_put(shard, holder, may_alias=False) for holder in holders]
            jax.block_until_ready(arrays[-len(holders) :])
        return jax.make_array_from_single_device_arrays(shape.shape, sharding, arrays, dtype=shape.dtype)

    def _shard(self, weight: Weight, extent: tuple[tuple[int, int], ...], dtype: np.dtype) -> np.ndarray:
        shard = np.zeros([stop - start for start, stop in extent], dtype)
        self.largest_buffer_bytes = max(self.largest_buffer_bytes, shard.nbytes)
        depth = len(weight.stack)
        inside = tuple(slice(*part) for part in extent[depth:])
        for index in itertools.product(*(range(*part) for part in extent[:depth])):
            name = weight.name(index)
            if name in self._zeros:
                continue
            at = tuple(i - start for i, (start, _) in zip(index, extent[:depth], strict=True))
            self.bytes_read += weight.cut(self._tensors[name].mapped(), inside, shard[at])
        return shard


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
