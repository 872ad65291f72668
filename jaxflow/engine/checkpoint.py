"""Arrays to disk and back: a pytree of sharded arrays written by Orbax, restored onto any mesh.

Knows no step, no model and no retention: whole checkpoints (what belongs together, when it counts as written,
which are kept) are `jaxflow.run_directory`'s. The only file that imports orbax.

Leaves are stored under their path in the tree ("optimizer/0/mu/layers/w"), so a saved tree is a set of named
arrays: neither the classes of its nodes nor the mesh it lived on are part of the format. Both functions are
collective: where `jax.distributed` spans several processes, all of them call with the same arguments, and
`directory` is on a file system that they share.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from jaxflow.types import UserError

# Arrays whose shards are larger are stored in pieces along their first dimension: a layer can be read alone.
_PIECE_BYTES = 2**26
_SMALLEST_PIECE_BYTES = 2**20  # a row of a table is no piece: there would be as many as tokens
_CACHE_BYTES = 2**29  # of pieces that hold several layers, between one layer's reading and the next's

_NAMED_DIFFERENCES = 5  # leaves spelled out in an error message; a wrong model differs in all of them


class _WithoutOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


# Orbax logs through absl's logger; each of its failures is raised as well, so nothing is lost.
logging.getLogger("absl").addFilter(_WithoutOrbax())


def save_arrays(directory: Path, tree) -> None:
    """Writes every array of a pytree; returns when all of them are on disk.

    Args:
      directory: created by this call; it appears under its name only once it is whole.
      tree: pytree of arrays (dicts, tuples, NamedTuples, dataclasses), sharded in any way, none of size zero.

    Raises:
      UserError: the file system refused a write (full, read-only, no permission).
    """
    leaves = _named_leaves(tree)
    pieces = {name: _pieces(leaf) for name, leaf in leaves.items()}
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(directory.absolute(), args=ocp.args.StandardSave(leaves, save_args=pieces))
    except (OSError, ValueError) as error:
        # Tensorstore reports the system's refusals as ValueError, marked like this; others are bugs.
        if isinstance(error, ValueError) and "os_error_code" not in str(error):
            raise
        raise UserError(f"{directory}: could not be written: {_first_line(error)}") from error


def restore_arrays(directory: Path, abstract):
    """Reads what `save_arrays` wrote, each array straight onto the sharding asked for.

    Args:
      directory: as given to `save_arrays`; saved from any mesh and any number of devices.
      abstract: pytree of `jax.ShapeDtypeStruct` with shardings; it decides the structure of the result.

    Returns:
      Pytree of arrays shaped like `abstract`, bitwise what was saved.

    Raises:
      UserError: nothing is saved there, it is damaged, or its leaves differ from `abstract` in name, shape or
        dtype.
    """
    expected = _named_leaves(abstract)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        _refuse_other_model(directory, _saved_leaves(checkpointer, directory), expected)
        try:
            arrays = checkpointer.restore(directory.absolute(), args=ocp.args.StandardRestore(expected))
        except Exception as error:  # the tree is as expected; on damaged data Orbax raises a bare Exception
            raise UserError(f"{directory}: could not be read, it is damaged: {_first_line(error)}") from error
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in expected])


def _pieces(leaf: jax.Array | np.ndarray) -> ocp.SaveArgs:
    """Say how an array's shards are stored: large ones of large entries an entry at a time, others whole."""
    shape = leaf.sharding.shard_shape(leaf.shape) if isinstance(leaf, jax.Array) else leaf.shape
    size = math.prod(shape) * leaf.dtype.itemsize
    if size <= _PIECE_BYTES or size < shape[0] * _SMALLEST_PIECE_BYTES:
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=_PIECE_BYTES, shard_axes=(0,))


class SavedArrays:
    """The arrays of a directory, read an entry at a time: what is asked for and the pieces around it."""

    def __init__(self, directory: Path):
        """Read names and types; UserError where nothing is saved there or it is damaged."""
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            self.types = _saved_leaves(checkpointer, directory)  # name -> "float32[2,8]"
        self._directory = directory
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._opened: dict[str, tensorstore.TensorStore] = {}

    def read(self, name: str, index: tuple[int, ...]) -> np.ndarray:
        """Return one entry of an array's leading dimensions; the empty index is the whole array."""
        base = f"file://{self._directory.absolute()}/"
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        try:
            if name not in self._opened:
                spec = {"driver": "zarr", "kvstore": store}
                self._opened[name] = tensorstore.open(spec, context=self._context, open=True).result()
            return np.asarray(self._opened[name][index].read().result())
        except ValueError as error:
            raise UserError(
                f"{self._directory}: {name} could not be read, it is damaged: {_first_line(error)}"
            ) from error


def _named_leaves(tree) -> dict[str, jax.Array | jax.ShapeDtypeStruct]:
    """Lists the leaves by their path, in the tree's own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the tree have one path: a key of a dictionary holds a '/'")
    return named


def _saved_leaves(checkpointer: ocp.Checkpointer, directory: Path) -> dict[str, str]:
    """Reads name → type of what a directory holds, without reading the arrays."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory of saved arrays")
    try:
        metadata = checkpointer.metadata(directory.absolute()).item_metadata
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory}: could not be read, it is damaged: {_first_line(error)}") from error
    if metadata is None:
        raise UserError(f"{directory}: holds no arrays saved by jaxflow, or they are damaged")
    return {name: _type_name(leaf.shape, leaf.dtype) for name, leaf in metadata.tree.items()}


def _refuse_other_model(directory: Path, saved: dict[str, str], expected: dict) -> None:
    wanted = {name: _type_name(leaf.shape, leaf.dtype) for name, leaf in expected.items()}
    differences = [
        f"{name}: it holds {saved.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in [*wanted, *(name for name in saved if name not in wanted)]
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        shown = "\n  ".join(differences[:_NAMED_DIFFERENCES])
        unnamed = len(differences) - _NAMED_DIFFERENCES
        more = f"\n  and {unnamed} more" if unnamed > 0 else ""
        raise UserError(
            f"{directory}: checkpoint from another model, {len(differences)} of {len(wanted)} arrays differ:"
            f"\n  {shown}{more}\nUse the config it was saved with, or another checkpoint."
        )


def _type_name(shape, dtype) -> str:
    return f"{jnp.dtype(dtype).name}[{','.join(map(str, shape))}]"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
