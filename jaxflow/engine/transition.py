"""The 3D-HybridEngine as a function: weights from one layout to another, with a count of what it cost.

Knows trees of arrays and shardings; no model, no algorithm, no Ray.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxflow.models.transformer import Params

_BUCKET_BYTES = 256 << 20  # of target weights moved by one compiled program


@dataclasses.dataclass(frozen=True)
class TransitionReport:
    """What one transition did."""

    received_bytes: Mapping[int, int]  # per device id, bytes that it did not hold before
    held_bytes: Mapping[int, int]  # per device id, bytes of its target shard
    aliased_leaves: int  # leaves that already were as wanted: no byte moved, no byte copied
    moved_leaves: int
    seconds: float

    @property
    def most_received_bytes(self) -> int:
        """Return the bytes received by the device that received most."""
        return max(self.received_bytes.values())


def _extent(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True)]


def received_elements(shape: tuple[int, ...], source: NamedSharding, target: NamedSharding) -> dict[int, int]:
    """Count, per device id, the elements of its target shard that its source shard does not hold."""
    before, after = source.devices_indices_map(shape), target.devices_indices_map(shape)
    received = {}
    for device, index in after.items():
        wanted = _extent(index, shape)
        total = int(np.prod([stop - start for start, stop in wanted]))
        held = 0
        if device in before:
            overlaps = [
                max(0, min(a[1], b[1]) - max(a[0], b[0]))
                for a, b in zip(wanted, _extent(before[device], shape), strict=True)
            ]
            held = int(np.prod(overlaps))
        received[device.id] = total - held
    return received


@functools.lru_cache(maxsize=256)
def _mover(shardings: tuple[NamedSharding, ...], dtype: str):
    # The cast stands before the move, so that the collectives carry the smaller type.
    return jax.jit(lambda leaves: [leaf.astype(dtype) for leaf in leaves], out_shardings=list(shardings))


def transition(params: Params, shardings: Any, dtype: str) -> tuple[Params, TransitionReport]:
    """Return `params` in `shardings` and `dtype`, and what that cost.

    Leaves that already are as wanted are passed on as they are. The others move inside compiled programs, a
    bucket of leaves at a time (eager placement would go through host memory). The source is left alone: here
    it is the master copy that training continues from.
    """
    started = time.perf_counter()
    leaves, structure = jax.tree.flatten(params)
    targets = jax.tree.leaves(shardings)
    itemsize = np.dtype(dtype).itemsize
    received = {device.id: 0 for target in targets for device in target.device_set}
    held = dict(received)
    moves, moved = [], list(leaves)
    for i, (leaf, target) in enumerate(zip(leaves, targets, strict=True)):
        shard_bytes = int(np.prod(target.shard_shape(leaf.shape))) * itemsize
        for device in target.device_set:
            held[device.id] += shard_bytes
        if leaf.dtype == dtype and leaf.sharding.is_equivalent_to(target, leaf.ndim):
            continue
        moves.append((i, shard_bytes))
        for device, elements in received_elements(leaf.shape, leaf.sharding, target).items():
            received[device] += elements * itemsize
    for bucket in _buckets(moves):
        results = _mover(tuple(targets[i] for i in bucket), dtype)([leaves[i] for i in bucket])
        for i, result in zip(bucket, results, strict=True):
            moved[i] = result
    jax.block_until_ready(moved)
    report = TransitionReport(
        received, held, len(leaves) - len(moves), len(moves), time.perf_counter() - started
    )
    return jax.tree.unflatten(structure, moved), report


def _buckets(moves: list[tuple[int, int]]) -> list[list[int]]:
    buckets, size = [], _BUCKET_BYTES
    for i, leaf_bytes in moves:
        if size + leaf_bytes > _BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(i)
        size += leaf_bytes
    return buckets
