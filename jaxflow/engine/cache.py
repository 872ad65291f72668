"""The key/value cache: one pair of arrays per layer, contiguous per row. Knows shapes and layout only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from jaxflow.engine.rows import EMPTY
from jaxflow.engine.sharding import Layout
from jaxflow.models.decoder_config import DecoderConfig

# [B, K, S, H]: positions of one head are neighbours, so a decode step reads each head's past in one sweep.
NAMES = ("batch", "kv_heads", None, None)

Cache = tuple[tuple[Array, Array], ...]
"""Per layer keys and values [B, K, S, H], each a buffer of its own that can be updated in place."""

_COPIED_TOGETHER = 8  # rows: the copies are few operations, and rounding their number up costs little


def cache_sharding(layout: Layout) -> NamedSharding:
    """Return where every array of a cache lives."""
    return layout.sharding(NAMES)


def empty_cache(config: DecoderConfig, rows: int, positions: int, dtype: str, layout: Layout) -> Cache:
    """Return zeros for every layer; each buffer is its own, so that each can be updated in place."""
    shape = (rows, config.kv_heads, positions, config.head_width)
    return tuple(
        tuple(layout.constrain(jnp.zeros(shape, dtype), NAMES) for _ in ("keys", "values"))
        for _ in range(config.layers)
    )


def copy_rows(
    cache: Cache, source: Cache, origins: Int[Array, "M"], places: Int[Array, "M"], layout: Layout
) -> Cache:
    """Write rows `origins` of a source whole into rows `places` of a cache, zeros behind what the source is wide.

    Both are numbered within each replica, and nothing travels between replicas; M is the same number of copies for
    each, those with place EMPTY at the end and not made. Nothing that stood in a place before survives, so that no
    number, a NaN say, outlives the sequence that it belongs to.
    """

    def local(cache: Cache, source: Cache, origins: Array, places: Array) -> Cache:
        padding = -len(places) % _COPIED_TOGETHER
        wanted = jnp.sum(places != EMPTY)
        # An index behind the last row is what a scatter drops; a negative one would count from the end.
        places = jnp.pad(places, (0, padding), constant_values=EMPTY)
        places = jnp.where(places == EMPTY, cache[0][0].shape[0], places)
        origins = jnp.pad(jnp.maximum(origins, 0), (0, padding))

        def some(turn: Array, cache: Cache) -> Cache:
            start = turn * _COPIED_TOGETHER
            from_, to = (
                jax.lax.dynamic_slice_in_dim(rows, start, _COPIED_TOGETHER) for rows in (origins, places)
            )

            def copied(array: Array, given: Array) -> Array:
                behind = array.shape[2] - given.shape[2]
                fresh = jnp.pad(given[from_], ((0, 0), (0, 0), (0, behind), (0, 0)))
                return array.at[to].set(fresh.astype(array.dtype), mode="drop")

            return jax.tree.map(copied, cache, source)

        return jax.lax.fori_loop(0, -(-wanted // _COPIED_TOGETHER), some, cache)

    rows, heads = layout.spec(("batch",)), layout.spec(NAMES)
    copy = jax.shard_map(
        local, mesh=layout.mesh, in_specs=(heads, heads, rows, rows), out_specs=heads, check_vma=False
    )
    return copy(cache, source, origins, places)
