"""Weights from the devices of one world to those of another: which process sends which boxes to which, in buckets.

The two worlds do not know each other's devices. Each tells where its shards lie (`leaf_shards`), both work out the
same route from that, and every process sends each process of the other world one message per bucket: the boxes that
its devices lack, each once however many of them want it. No array is whole anywhere unless a shard is. Knows
arrays and shardings; neither how messages travel nor whose weights they are.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jaxflow.engine.relocation import cut
from jaxflow.engine.shards import Extent, Holder, Piece, Shard, elements, filled, pieces, shards_of, within

Message = tuple[np.ndarray, ...]
"""What one process sends another of one bucket: the bytes of its boxes, uint8, in the route's order."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A part of one weight that goes from a device to a process."""

    leaf: int  # which weight
    extent: Extent  # in the whole array
    source: Holder


def leaf_shards(pool: str, shapes: Any, shardings: Any) -> tuple[tuple[Shard, ...], ...]:
    """Return the shards of every array of a tree, of all processes of this world; `pool` keeps the worlds apart."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return tuple(shards_of(pool, leaf.shape, sharding) for leaf, sharding in leaves)


class Route:
    """Who sends what to whom; both worlds work out the same from the same shards."""

    def __init__(
        self,
        sources: Sequence[Sequence[Shard]],
        targets: Sequence[Sequence[Shard]],
        itemsize: int,
        bucket_bytes: int,
    ):
        """Plan the way of some arrays, in buckets of at least `bucket_bytes` per target device (the last one: less)."""
        self._targets = targets
        self.pieces: tuple[tuple[Piece, ...], ...] = tuple(
            pieces(source, target) for source, target in zip(sources, targets, strict=True)
        )
        self.extents = tuple({shard.holder: shard.extent for shard in source} for source in sources)
        self.buckets = filled([_largest(target) * itemsize for target in targets], bucket_bytes)
        self.receiving = _processes(targets)

    def boxes(self, bucket: int, sender: int, receiver: int) -> tuple[Box, ...]:
        """Return what one process of the sources sends one of the targets in this bucket, in their common order."""
        found = (
            Box(leaf, piece.extent, piece.source)
            for leaf in self.buckets[bucket]
            for piece in self.pieces[leaf]
            if piece.source.process == sender and piece.target.process == receiver
        )
        return tuple(dict.fromkeys(found))


def send(route: Route, bucket: int, leaves: Sequence[jax.Array], dtype: str) -> tuple[Message, ...]:
    """Return this process's message to every process of the targets, cast before it leaves the devices.

    `leaves` are all arrays of the tree, in its order, in the sources' shardings.
    """
    me = jax.process_index()
    held = {
        leaf: {shard.device.id: shard.data for shard in leaves[leaf].addressable_shards}
        for leaf in route.buckets[bucket]
    }

    def data(box: Box) -> np.ndarray:
        shard = held[box.leaf][box.source.device]
        part = cut(shard, within(box.extent, route.extents[box.leaf][box.source]), dtype)
        return np.ascontiguousarray(np.asarray(part)).reshape(-1).view(np.uint8)

    return tuple(tuple(map(data, route.boxes(bucket, me, receiver))) for receiver in range(route.receiving))


class Arrivals:
    """The receiving end: makes the shards of this process out of messages, bucket by bucket."""

    def __init__(self, route: Route, shapes: Any, shardings: Any, dtype: str):
        self._route, self._dtype = route, np.dtype(dtype)
        self._shapes = jax.tree.leaves(shapes)
        self._shardings: list[Sharding]
        self._shardings, self._structure = jax.tree.flatten(shardings)
        self._leaves: list[jax.Array | None] = [None] * len(self._shapes)

    def receive(self, bucket: int, messages: Sequence[Message]) -> int:
        """Make this bucket's arrays of the messages of all senders, in their order; return the bytes received.

        The arrays that were there before are let go first. The bytes are those of the device that got most.
        """
        me, route = jax.process_index(), self._route
        found = {
            (box.leaf, box.extent): data.view(self._dtype).reshape([b - a for a, b in box.extent])
            for sender, message in enumerate(messages)
            for box, data in zip(route.boxes(bucket, sender, me), message, strict=True)
        }
        received: collections.Counter[int] = collections.Counter()
        for leaf in route.buckets[bucket]:
            self._leaves[leaf] = None
            sharding, shape = self._shardings[leaf], self._shapes[leaf].shape
            arrived = collections.defaultdict[int, list[Extent]](list)
            for piece in route.pieces[leaf]:
                if piece.target.process == me:
                    arrived[piece.target.device].append(piece.extent)
            devices = {device.id: device for device in sharding.addressable_devices}
            made = []
            for shard in shards_of("", shape, sharding):
                device = shard.holder.device
                if device in devices:
                    parts = {extent: found[leaf, extent] for extent in arrived[device]}
                    made.append(jax.device_put(_assembled(shard.extent, parts), devices[device]))
                    received[device] += made[-1].nbytes
            self._leaves[leaf] = jax.make_array_from_single_device_arrays(shape, sharding, made)
        jax.block_until_ready([self._leaves[leaf] for leaf in route.buckets[bucket]])
        return max(received.values(), default=0)

    def take(self) -> Any:
        """Hand the arrays over and keep none; RuntimeError unless every bucket has arrived since the last time."""
        if any(leaf is None for leaf in self._leaves):
            raise RuntimeError("weights were asked for before all of them had arrived")
        taken, self._leaves = self._leaves, [None] * len(self._leaves)
        return jax.tree.unflatten(self._structure, taken)


def _assembled(extent: Extent, parts: Mapping[Extent, np.ndarray]) -> np.ndarray:
    """Return a shard made of its boxes, in memory of its own: what arrived may be pages that others share."""
    shard = np.empty([stop - start for start, stop in extent], next(iter(parts.values())).dtype)
    for box, data in parts.items():
        shard[within(box, extent)] = data
    return shard


def _largest(shards: Sequence[Shard]) -> int:
    return max(elements(shard.extent) for shard in shards)


def _processes(targets: Sequence[Sequence[Shard]]) -> int:
    return 1 + max(shard.holder.process for shard in itertools.chain.from_iterable(targets))
