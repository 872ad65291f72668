"""Arrays that wait in their host's memory between their uses, so that others can have the devices' memory.

They wait as pinned memory of the process that owns their devices, shard by shard: nothing is gathered, and a shard
comes back by one copy over its own device's link. Knows trees of arrays; no model and no role.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax

HOST_MEMORY, DEVICE_MEMORY = "pinned_host", "device"


@dataclasses.dataclass(frozen=True)
class Moved:
    """What moving arrays between host and devices took."""

    bytes: int  # of the device that had most to move
    seconds: float


def to_host(tree: Any) -> tuple[Any, Moved]:
    """Move arrays to their hosts' memory; the devices' copies are deleted, so nobody else may hold them.

    Bitwise: what comes back is what went.
    """
    return _moved(tree, HOST_MEMORY, delete=True)


def to_devices(tree: Any, delete: bool = True) -> tuple[Any, Moved]:
    """Move arrays from their hosts' memory to the devices; the host's copies are deleted unless they are to stay."""
    return _moved(tree, DEVICE_MEMORY, delete)


def _moved(tree: Any, kind: str, delete: bool) -> tuple[Any, Moved]:
    started = time.perf_counter()
    leaves, structure = jax.tree.flatten(tree)
    # XLA gives no buffer of one kind of memory to the other, so both exist until a leaf has arrived.
    arrived = []
    for leaf in leaves:
        arrived.append(jax.device_put(leaf, leaf.sharding.with_memory_kind(kind)))
        if delete:
            jax.block_until_ready(arrived[-1])
            leaf.delete()
    jax.block_until_ready(arrived)
    held: collections.Counter[int] = collections.Counter()
    for leaf in arrived:
        held.update({shard.device.id: shard.data.nbytes for shard in leaf.addressable_shards})
    seconds = time.perf_counter() - started
    return jax.tree.unflatten(structure, arrived), Moved(max(held.values(), default=0), seconds)


class Frozen:
    """Weights that never change: on the devices for good, or in host memory but while they are used."""

    def __init__(self, tree: Any, offload: bool):
        """Take arrays on the devices over."""
        self._offload = offload
        self._tree = to_host(tree)[0] if offload else tree

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[tuple[Any, Moved | None]]:
        """Yield the arrays on the devices, and what bringing them took; None where they were there."""
        if not self._offload:
            yield self._tree, None
            return
        here, moved = to_devices(self._tree, delete=False)
        try:
            yield here, moved
        finally:
            for leaf in jax.tree.leaves(here):
                leaf.delete()
