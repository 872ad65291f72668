"""Moves arrays between the devices of one process, shard to shard: what no program over one mesh can do.

Knows arrays and shardings. No array is ever whole in one place unless its target shard is.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array

from jaxflow.engine.shards import Extent, Piece, pieces, shards_of, within


def relocate(array: Array, target: Sharding, dtype: str) -> Array:
    """Return the array in `target` and `dtype`, cast before it moves; shares no buffer with the source.

    Raises ValueError if this process does not hold the devices of both.
    """
    if not (array.is_fully_addressable and target.is_fully_addressable):
        raise ValueError("weights move between meshes inside one process: another process holds part of one")
    sources = {shard.holder: shard.extent for shard in shards_of("", array.shape, array.sharding)}
    targets = shards_of("", array.shape, target)
    held = {shard.device.id: shard.data for shard in array.addressable_shards}
    devices = {device.id: device for device in target.device_set}
    parts: dict[int, list[tuple[Piece, Array]]] = {device: [] for device in devices}
    for piece in pieces(tuple(shards_of("", array.shape, array.sharding)), targets):
        part = cut(held[piece.source.device], within(piece.extent, sources[piece.source]), dtype)
        # An array that stays on its device would be the source's own buffer, and go with it.
        stays = piece.source == piece.target
        sent = jnp.array(part, copy=True) if stays else jax.device_put(part, devices[piece.target.device])
        parts[piece.target.device].append((piece, sent))
    shards = [_assembled(parts[shard.holder.device], shard.extent) for shard in targets]
    return jax.make_array_from_single_device_arrays(array.shape, target, shards)


def cut(shard: Array, box: tuple[slice, ...], dtype: str) -> Array:
    """Return a part of a shard, on its device; the shard itself where nothing is to be cut or cast."""
    shape = tuple(place.stop - place.start for place in box)
    if shape == shard.shape and shard.dtype == dtype:
        return shard
    return _slice(shard, tuple(place.start for place in box), shape, dtype)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _slice(shard: Array, starts: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> Array:
    # Where it starts is an argument: one program per shape, not per place.
    return jax.lax.dynamic_slice(shard, starts, shape).astype(dtype)


def _assembled(parts: list[tuple[Piece, Array]], extent: Extent) -> Array:
    """Return a shard made of its pieces, on their device."""
    (first, sent), *others = parts
    if not others:
        return sent
    shape = tuple(stop - start for start, stop in extent)
    shard = jnp.zeros(shape, sent.dtype, device=sent.sharding)
    for piece, data in [(first, sent), *others]:
        shard = _write(shard, data, tuple(place.start for place in within(piece.extent, extent)))
    return shard


@functools.partial(jax.jit, donate_argnums=0)
def _write(shard: Array, data: Array, starts: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_update_slice(shard, data, starts)
