"""Who holds which rows of a batch: host rows of this process to arrays on a mesh, and back.

A batch of B rows is cut into equal blocks of neighbours, one for each coordinate on the mesh axes that the rows
are split over. A process holds the blocks of its devices, in order, and sees no other row; what all processes must
agree on follows from small numbers per row that they gather. Knows no sequence, no micro-batch and no model.
"""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

EMPTY = -1  # stands where a row could, and marks padding


def block(total: int, blocks: int, index: int) -> slice:
    """Return the rows of one block of `total`: ⌈total / blocks⌉ each, the last ones shorter or empty."""
    size = -(-total // blocks)
    return slice(min(index * size, total), min((index + 1) * size, total))


class Rows:
    """The rows of a mesh, split over some of its axes (named in mesh order)."""

    def __init__(self, mesh: Mesh, axes: tuple[str, ...]):
        self.blocks = math.prod(mesh.shape[axis] for axis in axes)
        self._sharding = NamedSharding(mesh, PartitionSpec(axes))
        # Processes in mesh order: the first one has the first device, and so a prefix of the blocks.
        self._held = {p: tuple(sorted(ids)) for p, ids in _blocks_of_processes(mesh, axes).items()}
        self._one_per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._replicate = jax.jit(_identity, out_shardings=NamedSharding(mesh, PartitionSpec()))

    @property
    def held(self) -> tuple[int, ...]:
        """Return the blocks of this process; none where the mesh is of other processes alone."""
        return self._held.get(jax.process_index(), ())

    def indices(self, total: int) -> np.ndarray:
        """Return which rows of a batch of `total` this process holds, in the order it holds them."""
        blocks = [np.arange(total)[block(total, self.blocks, index)] for index in self.held]
        return np.concatenate([np.zeros(0, np.int64), *blocks])

    def gather(self, local: np.ndarray) -> np.ndarray:
        """Return small numbers per row [b, …] of all processes as [B, …], in row order, the same everywhere.

        Collective. Raises ValueError if the processes' rows are not those of their blocks.
        """
        if len(self._held) == 1:
            return local
        counts = self._local_counts(len(local))
        # ⌈B / blocks⌉: a prefix of the blocks is at least as full as all are, and none holds more.
        size = max(-(-counts[p] // len(held)) for p, held in self._held.items())
        total = self._total(counts, size)
        if total == 0:
            return local
        # Behind a block that is not full there are only empty ones, so that all padding stands at the end.
        padded = np.zeros((len(self.held) * size, *local.shape[1:]), local.dtype)
        padded[: len(local)] = local
        return np.asarray(self._replicate(self.place(padded)))[:total]

    def any(self, flag: bool) -> bool:
        """Return whether any process says so, the same everywhere. Collective."""
        if len(self._held) == 1:
            return flag
        return any(said > 0 for said in self._local_counts(int(flag)).values())

    def _local_counts(self, count: int) -> dict[int, int]:
        """Return how many each process has, of rows or of what it counts."""
        mesh = self._one_per_device.mesh
        mine = np.full(1, count, np.int32)
        spread = jax.make_array_from_callback((mesh.size,), self._one_per_device, lambda _: mine)
        told = np.asarray(self._replicate(spread)).tolist()
        return {device.process_index: n for device, n in zip(mesh.devices.flat, told, strict=True)}

    def _total(self, counts: dict[int, int], size: int) -> int:
        sizes = {}
        for process, held in self._held.items():
            rest = counts[process]
            for place, index in enumerate(held):
                sizes[index] = min(max(rest - place * size, 0), size)
        total = sum(sizes.values())
        for process, held in self._held.items():
            expected = sum(len(range(total)[block(total, self.blocks, index)]) for index in held)
            if counts[process] != expected:
                raise ValueError(
                    f"process {process} has {counts[process]} of {total} rows; its blocks {held} of"
                    f" {self.blocks} hold {expected}"
                )
        return total

    def split(self, rows: np.ndarray, total: int) -> list[np.ndarray]:
        """Cut ascending indices into a batch of `total` rows by the block that each row is in."""
        starts = [block(total, self.blocks, index).start for index in range(1, self.blocks)]
        return np.split(rows, np.searchsorted(rows, starts))

    def local(self, rows: np.ndarray, total: int) -> np.ndarray:
        """Return where this process's share of a table [blocks, k] of rows is in its own batch, [held · k].

        EMPTY stays EMPTY.
        """
        held = np.asarray(self.held, dtype=np.int64)
        size = -(-total // self.blocks)
        # The j-th block held starts at j · size here, and at held[j] · size in the whole batch.
        offsets = (held - np.arange(len(held))) * size
        mine = rows[held]
        return np.where(mine == EMPTY, EMPTY, mine - offsets[:, None]).reshape(-1)

    def place(self, batch: Tree) -> Tree:
        """Put this process's share [held · k, …] of each leaf [blocks · k, …] onto its devices, split over the axes.

        The leaves' memory may live on in the result: hand over arrays that nobody writes to any more.
        """
        held = self.held
        position = {index: place for place, index in enumerate(held)}

        def placed(leaf: np.ndarray) -> jax.Array:
            k = len(leaf) // len(held)

            def part(index: tuple[slice, ...]) -> np.ndarray:
                place = position[index[0].indices(len(leaf) * self.blocks)[0] // k]
                return leaf[place * k : (place + 1) * k]

            shape = (self.blocks * k, *leaf.shape[1:])
            return jax.make_array_from_callback(shape, self._sharding, part)

        return jax.tree.map(placed, batch)

    def fetch(self, arrays: Tree) -> Tree:
        """Return this process's share [held · k, …] of arrays that are split over the axes, as NumPy."""

        def fetched(array: jax.Array) -> np.ndarray:
            shards = {shard.index[0].indices(len(array))[0]: shard.data for shard in array.addressable_shards}
            return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

        return jax.tree.map(fetched, arrays)


def _identity(array: jax.Array) -> jax.Array:
    return array


def _blocks_of_processes(mesh: Mesh, axes: tuple[str, ...]) -> dict[int, set[int]]:
    """Return, per process, the mixed-radix indices of its devices' coordinates on the axes."""
    index = np.zeros(mesh.devices.shape, np.int64)
    for dimension, name in enumerate(mesh.axis_names):
        if name in axes:
            index = index * mesh.shape[name] + np.indices(mesh.devices.shape)[dimension]
    held: dict[int, set[int]] = {}
    for device, number in zip(mesh.devices.flat, index.flat, strict=True):
        held.setdefault(device.process_index, set()).add(int(number))
    return held
