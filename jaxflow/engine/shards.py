"""Shards as boxes of indices: what a device must receive, what it holds for nothing, who sends what to whom.

Pure functions of shapes and shardings. Moves nothing; its dataclasses are plain values that can go between
processes whose devices do not know each other.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

from jax.sharding import Sharding

Extent = tuple[tuple[int, int], ...]
"""A box of indices: [start, stop) per dimension."""


def elements(extent: Extent) -> int:
    """Count the elements of a box."""
    return math.prod(stop - start for start, stop in extent)


def overlap(one: Extent, other: Extent) -> Extent:
    """Return what two boxes have in common; of no elements where that is nothing."""
    starts = [(max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(one, other, strict=True)]
    return tuple((start, max(start, stop)) for start, stop in starts)


def within(extent: Extent, shard: Extent) -> tuple[slice, ...]:
    """Return where a box lies in a shard that contains it."""
    return tuple(slice(a - first, b - first) for (a, b), (first, _) in zip(extent, shard, strict=True))


@dataclasses.dataclass(frozen=True)
class Holder:
    """A device, named so that devices of different worlds differ."""

    pool: str
    process: int
    device: int  # its id


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of an array that one device holds."""

    holder: Holder
    extent: Extent


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of an array that goes from one shard into another; nowhere, if both are one device's."""

    source: Holder
    target: Holder
    extent: Extent  # in the whole array


def filled(sizes: Sequence[int], least: int) -> tuple[tuple[int, ...], ...]:
    """Cut the indices of some sizes into runs of at least so much together; the last may have less."""
    runs: list[list[int]] = []
    full = True
    for index, _ in enumerate(sizes):
        if full:
            runs.append([])
        runs[-1].append(index)
        full = sum(sizes[i] for i in runs[-1]) >= least
    return tuple(map(tuple, runs))


def shards_of(pool: str, shape: tuple[int, ...], sharding: Sharding) -> tuple[Shard, ...]:
    """Return the shards of an array of this shape, in the order of the sharding's devices."""
    return tuple(
        Shard(
            Holder(pool, device.process_index, device.id),
            tuple(piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True)),
        )
        for device, index in sharding.devices_indices_map(shape).items()
    )


def received_elements(shape: tuple[int, ...], source: Sharding, target: Sharding) -> dict[int, int]:
    """Count, per device id of the target, the elements of its target shard that its source shard lacks."""
    return _lacking(shards_of("", shape, target), shards_of("", shape, source))


def redundant_elements(shape: tuple[int, ...], source: Sharding, target: Sharding) -> dict[int, int]:
    """Count, per device id of the source, the elements of its source shard that its target shard lacks.

    These must be kept beside the target shard, or fetched again for the way back.
    """
    return _lacking(shards_of("", shape, source), shards_of("", shape, target))


def _lacking(wanted: Sequence[Shard], held: Sequence[Shard]) -> dict[int, int]:
    extents = {shard.holder.device: shard.extent for shard in held}
    lacking = {}
    for shard in wanted:
        device = shard.holder.device
        common = elements(overlap(shard.extent, extents[device])) if device in extents else 0
        lacking[device] = elements(shard.extent) - common
    return lacking


def pieces(sources: Sequence[Shard], targets: Sequence[Shard]) -> tuple[Piece, ...]:
    """Return the pieces that every target shard is made of: each element once, none of a whole array.

    A device that holds a piece takes its own; else it comes from the same process, else from another.
    """
    replicas: dict[Extent, list[Holder]] = collections.defaultdict(list)
    for shard in sources:
        replicas[shard.extent].append(shard.holder)
    senders, found = _Senders(), []
    for target in targets:
        for held, holders in replicas.items():
            extent = overlap(held, target.extent)
            if elements(extent) > 0:
                found.append(Piece(senders.choose(extent, holders, target.holder), target.holder, extent))
    return tuple(found)


class _Senders:
    """Chooses among replicas the one that has sent least so far."""

    def __init__(self) -> None:
        self._sent: collections.Counter[Holder] = collections.Counter()
        self._chosen: dict[tuple[Extent, Holder | tuple[str, int]], Holder] = {}

    def choose(self, extent: Extent, replicas: Sequence[Holder], to: Holder) -> Holder:
        if to in replicas:
            return to
        process = (to.pool, to.process)
        beside = [holder for holder in replicas if (holder.pool, holder.process) == process]
        # What several devices of another process want comes from one replica, so that it can travel once.
        wanted = (extent, to if beside else process)
        if wanted not in self._chosen:
            sender = min(beside if beside else replicas, key=lambda holder: self._sent[holder])
            self._sent[sender] += elements(extent)
            self._chosen[wanted] = sender
        return self._chosen[wanted]
