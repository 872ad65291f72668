"""Weights into a Hugging Face checkpoint, a tensor at a time, whole or not at all.

Knows neither mesh nor format of checkpoints of our own: where a weight's entries come from is a function handed in.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxflow.durable import sync_folder
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.description import CONFIG_FILE
from jaxflow.models.tensor_files import DTYPES, INDEX_FILE, NewTensor, in_files, index_of, write_tensors
from jaxflow.models.transformer import Params
from jaxflow.models.weight_names import Weight, weights_of
from jaxflow.types import UserError

Entries = Callable[[Weight, tuple[int, ...]], np.ndarray]
"""(weight, index in its stack of layers and experts) -> that entry, in the weight's own layout."""

STORED_DTYPES: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16"}
"""What weights may be written as."""

MOST_BYTES_PER_FILE = 5 * 10**9
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def entries_of(params: Params, dtype: str) -> Entries:
    """Return how to bring entries of sharded weights to the host, cast to this dtype first.

    An entry is gathered by a compiled program, so it may lie over the devices of several processes: all of them ask
    for the same entries in the same order. One entry at a time exists whole.
    """
    gathers: dict[tuple[str, ...], Callable[..., jax.Array]] = {}

    def entry(weight: Weight, index: tuple[int, ...]) -> np.ndarray:
        leaf: Any = params
        for key in weight.path:
            leaf = leaf[key]
        if weight.path not in gathers:
            gathers[weight.path] = _gathering(leaf, len(weight.stack), dtype)
        return np.asarray(gathers[weight.path](leaf, index).addressable_data(0))

    return entry


def _gathering(leaf: jax.Array, depth: int, dtype: str) -> Callable[..., jax.Array]:
    """Return the program that brings one entry of a weight's `depth` leading dimensions to every device."""
    here = leaf.sharding
    whole = NamedSharding(here.mesh, PartitionSpec()) if isinstance(here, NamedSharding) else here
    if here.shard_shape(leaf.shape)[:depth] == leaf.shape[:depth]:
        return jax.jit(lambda leaf, at: leaf[at].astype(dtype), out_shardings=whole)
    bits = {2: jnp.uint16, 4: jnp.uint32}[jnp.dtype(dtype).itemsize]

    def picked(leaf: jax.Array, at: tuple[jax.Array, ...]) -> jax.Array:
        # The stack is cut over devices, and indexing it would gather all of it. Instead each device picks the entry
        # out of its part, nothing where it lies elsewhere; summed as bits, so that no zero loses its sign.
        entry = jax.lax.bitcast_convert_type(leaf.astype(dtype), bits)
        for place in at:
            chosen = jnp.arange(entry.shape[0]) == place
            entry = jnp.sum(jnp.where(chosen.reshape(-1, *[1] * (entry.ndim - 1)), entry, 0), 0, dtype=bits)
        return jax.lax.bitcast_convert_type(entry, dtype)

    return jax.jit(picked, out_shardings=whole)


def write_checkpoint(
    out: Path,
    decoder: DecoderConfig,
    head: str,
    entries: Entries,
    dtype: str,
    config: Mapping[str, object],
    tokenizer: Path | None = None,
    most_bytes_per_file: int = MOST_BYTES_PER_FILE,
) -> int:
    """Write a checkpoint that transformers loads, and return the bytes of its tensors.

    Padding of vocabulary and heads is left out. `config` is written as config.json, the files of the `tokenizer`
    directory are copied. The directory appears under its name once it is whole; where `jax.distributed` spans
    several processes all of them call this, and process 0 writes.

    Raises:
        UserError: `out` exists already, `dtype` is none that is written, or the file system refused.
    """
    if dtype not in STORED_DTYPES:
        raise UserError(f"dtype {dtype!r}: weights are written as {' or '.join(STORED_DTYPES)}")
    sources = {
        name: (weight, index) for weight in weights_of(decoder, head) for index, name in weight.tensors()
    }
    tensors = [
        NewTensor(name, STORED_DTYPES[dtype], weight.tensor_shape) for name, (weight, _) in sources.items()
    ]
    files = in_files(tensors, most_bytes_per_file)

    def read(name: str) -> np.ndarray:
        weight, index = sources.pop(name)
        entry = entries(weight, index).astype(DTYPES[STORED_DTYPES[dtype]], copy=False)
        return weight.restore(entry)

    if jax.process_index() != 0:
        for tensor in tensors:
            read(tensor.name)
        return sum(tensor.bytes for tensor in tensors)
    try:
        with new_folder(out) as folder:
            for file, held in files.items():
                write_tensors(folder / file, held, read)
            if len(files) > 1:
                write_json(folder / INDEX_FILE, index_of(files))
            write_json(folder / CONFIG_FILE, config)
            if tokenizer is not None:
                copy_tokenizer(tokenizer, folder)
    finally:
        # Where writing failed the others are still waiting to gather the rest with this process.
        if jax.process_count() > 1:
            for name in list(sources):
                read(name)
    return sum(tensor.bytes for tensor in tensors)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its name at the end; after an error nothing is left.

    Raises UserError where `out` exists already or the file system refuses.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already and is not overwritten; choose another name")
    staged = out.absolute().with_name(f".writing_{out.name}_{os.getpid()}")
    try:
        staged.mkdir(parents=True)
        yield staged
        for folder in [path for path in staged.rglob("*") if path.is_dir()] + [staged]:
            sync_folder(folder)
        os.rename(staged, out)
        sync_folder(staged.parent)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise UserError(f"{out}: could not be written: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files; UserError where there are none."""
    found = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise UserError(f"{source}: holds no file of a Hugging Face tokenizer")
    for file in found:
        shutil.copyfile(file, folder / file.name)


def write_json(file: Path, value: Mapping[str, object]) -> None:
    """Write a tree of JSON values so that it is on the disk when this returns."""
    with file.open("w", encoding="utf-8") as opened:
        json.dump(value, opened, indent=2)
        opened.write("\n")
        opened.flush()
        os.fsync(opened.fileno())
