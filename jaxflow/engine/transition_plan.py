"""What a change of layout takes, before it runs: compiled programs, buckets, bytes, peak, collectives.

Knows shapes and shardings, and needs no weights: the same plan that runs can be made ahead of time, for more
devices than there are memory for.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from jax.stages import Compiled
from jaxtyping import Array

from jaxflow.engine.compiled import Collective, collectives_of, memory_of
from jaxflow.engine.relocation import relocate
from jaxflow.engine.shards import filled, received_elements, redundant_elements


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One weight that changes layout."""

    shape: tuple[int, ...]
    dtype: np.dtype
    source: Sharding
    target: Sharding

    @property
    def in_place(self) -> bool:
        """Return whether source and target cut it alike; its dtype may still change."""
        return self.source.is_equivalent_to(self.target, len(self.shape))

    @property
    def one_program(self) -> bool:
        """Return whether one program can hold both: the same devices in the same order."""
        before, after = (s.devices_indices_map(self.shape) for s in (self.source, self.target))
        return list(before) == list(after)


@dataclasses.dataclass(frozen=True)
class TransitionCost:
    """What one transition does, known before it runs. Bytes per device id, in the target dtype."""

    received_bytes: Mapping[int, int]  # of its target shard, what its source shard lacks
    held_bytes: Mapping[int, int]  # its target shard
    redundant_bytes: Mapping[int, int]  # of its source shard, what its target shard lacks
    peak_bytes: int  # most weights on one device at once: sources not yet released, results, temporaries
    collectives: tuple[Collective, ...]  # as compiled; XLA on CPU widens bfloat16 ones to float32
    aliased_leaves: int  # leaves that already are as wanted: no byte moved, no byte copied
    moved_leaves: int

    @property
    def most_received_bytes(self) -> int:
        """Return the bytes received by the device that receives most."""
        return max(self.received_bytes.values())


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Leaves that move together."""

    indices: tuple[int, ...]
    move: Callable[[list[Array]], list[Array]]
    collectives: tuple[Collective, ...]
    temporary_bytes: int


@dataclasses.dataclass(frozen=True)
class TransitionPlan:
    """A transition ready to run."""

    buckets: tuple[Bucket, ...]
    cost: TransitionCost


def leaves_of(shapes: Any, sources: Any, targets: Any) -> tuple[Leaf, ...]:
    """Describe a tree of arrays, or of shapes alone, that is to change its shardings."""
    trees = (jax.tree.leaves(tree) for tree in (shapes, sources, targets))
    return tuple(Leaf(array.shape, array.dtype, *pair) for array, *pair in zip(*trees, strict=True))


@functools.lru_cache(maxsize=64)
def plan_transition(leaves: tuple[Leaf, ...], dtype: str, release: bool, bucket_bytes: int) -> TransitionPlan:
    """Compile a transition and count what it will do; needs shapes and shardings, no weights."""
    moves = [i for i, leaf in enumerate(leaves) if leaf.dtype != dtype or not leaf.in_place]
    kinds = ([i for i in moves if leaves[i].one_program], [i for i in moves if not leaves[i].one_program])
    buckets = []
    for kind, prepare in zip(kinds, (_compiled, _relocated), strict=True):
        for indices in _filled(kind, leaves, dtype, bucket_bytes):
            buckets.append(prepare(indices, tuple(leaves[i] for i in indices), dtype))
    itemsize = np.dtype(dtype).itemsize
    counts = {
        "received_bytes": [received_elements(leaf.shape, leaf.source, leaf.target) for leaf in leaves],
        "redundant_bytes": [redundant_elements(leaf.shape, leaf.source, leaf.target) for leaf in leaves],
        "held_bytes": [dict.fromkeys(_ids(leaf.target), _elements(leaf, leaf.target)) for leaf in leaves],
    }
    cost = TransitionCost(
        **{name: _summed(parts, itemsize) for name, parts in counts.items()},
        peak_bytes=_peak(leaves, buckets, itemsize, release),
        collectives=tuple(collective for bucket in buckets for collective in bucket.collectives),
        aliased_leaves=len(leaves) - len(moves),
        moved_leaves=len(moves),
    )
    return TransitionPlan(tuple(buckets), cost)


def _compiled(indices: tuple[int, ...], leaves: tuple[Leaf, ...], dtype: str) -> Bucket:
    program = _program(leaves, dtype)
    return Bucket(indices, program, collectives_of(program.as_text()), memory_of(program).temporaries)


@functools.lru_cache(maxsize=256)
def _program(leaves: tuple[Leaf, ...], dtype: str) -> Compiled:
    # The cast stands before the move, so that the collectives carry the smaller type.
    move = jax.jit(
        lambda arrays: [array.astype(dtype) for array in arrays],
        out_shardings=[leaf.target for leaf in leaves],
    )
    arrays = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.source) for leaf in leaves]
    return move.lower(arrays).compile()


def _relocated(indices: tuple[int, ...], leaves: tuple[Leaf, ...], dtype: str) -> Bucket:
    def move(arrays: list[Array]) -> list[Array]:
        return [relocate(array, leaf.target, dtype) for array, leaf in zip(arrays, leaves, strict=True)]

    # Every shard's pieces have arrived before the shard is made of them.
    arrived = sum(_elements(leaf, leaf.target) for leaf in leaves) * np.dtype(dtype).itemsize
    return Bucket(indices, move, (), arrived)


def _filled(
    moves: Sequence[int], leaves: tuple[Leaf, ...], dtype: str, bucket_bytes: int
) -> list[tuple[int, ...]]:
    """Cut a list of leaves into buckets of at least so many bytes per device; the last may have less."""
    sizes = [_elements(leaves[i], leaves[i].target) * np.dtype(dtype).itemsize for i in moves]
    return [tuple(moves[i] for i in run) for run in filled(sizes, bucket_bytes)]


def _peak(leaves: tuple[Leaf, ...], buckets: list[Bucket], itemsize: int, release: bool) -> int:
    """Return the most bytes on one device while the buckets move one after the other."""
    alive: collections.Counter[int] = collections.Counter()

    def add(leaf: Leaf, sharding: Sharding, size: int) -> None:
        alive.update(dict.fromkeys(_ids(sharding), _elements(leaf, sharding) * size))

    for leaf in leaves:
        add(leaf, leaf.source, leaf.dtype.itemsize)
    peak = max(alive.values())
    for bucket in buckets:
        for i in bucket.indices:
            add(leaves[i], leaves[i].target, itemsize)
        receivers = {device for i in bucket.indices for device in _ids(leaves[i].target)}
        peak = max(peak, *alive.values(), max(alive[device] for device in receivers) + bucket.temporary_bytes)
        for i in bucket.indices if release else ():
            add(leaves[i], leaves[i].source, -leaves[i].dtype.itemsize)
    return peak


def _ids(sharding: Sharding) -> list[int]:
    return [device.id for device in sharding.device_set]


def _elements(leaf: Leaf, sharding: Sharding) -> int:
    return math.prod(sharding.shard_shape(leaf.shape))


def _summed(parts: list[dict[int, int]], itemsize: int) -> dict[int, int]:
    total: collections.Counter[int] = collections.Counter()
    for part in parts:
        total.update({device: count * itemsize for device, count in part.items()})
    return dict(total)
