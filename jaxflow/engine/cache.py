"""The key/value cache: pairs of arrays, contiguous per row. Knows shapes and layout only.

Without stages there is a pair for each layer. With p stages of L/p layers there are as many pairs of the same shape, p
of them for the j-th layer of every stage: rows [B] are then cut over the stages too, and a pair has, on each stage, a
p-th of the rows of that stage's own layer. A replica's slots n are p groups of c, and stage s keeps row n of group
g = n // c in pair (g + s) mod p: at every tick of a rotation (rotation.py) one pair is what all stages need.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from jaxflow.engine.rows import EMPTY
from jaxflow.engine.sharding import Layout
from jaxflow.models.decoder_config import DecoderConfig

# [B, K, S, H]: positions of one head are neighbours, so a decode step reads each head's past in one sweep.
NAMES = ("cached", "kv_heads", None, None)

Cache = tuple[tuple[Array, Array], ...]
"""L pairs, keys and values [B, K, S, H], each a buffer of its own that can be updated in place."""

# Rows that are copied at a time: elsewhere the copies are then few operations, and rounding their number up costs
# little; on a CPU operations cost less than rows.
_COPIED_TOGETHER, _COPIED_TOGETHER_ON_CPU = 8, 1


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

    Both are numbered within each replica, and nothing travels between replicas or stages; M is the same number of
    copies for each, those with place EMPTY at the end and not made. Nothing that stood in a place before survives, so
    that no number, a NaN say, outlives the sequence that it belongs to. Of both there may be some layers only.
    """
    stages = layout.stages
    on_cpu = layout.mesh.devices.flat[0].platform == "cpu"
    together = _COPIED_TOGETHER_ON_CPU if on_cpu else _COPIED_TOGETHER

    def local(cache: Cache, source: Cache, origins: Array, places: Array) -> Cache:
        stage = jax.lax.axis_index(layout.axes["layers"]) if stages > 1 else 0
        padding = -len(places) % together
        wanted = jnp.sum(places != EMPTY)
        places = jnp.pad(places, (0, padding), constant_values=EMPTY)
        origins = jnp.pad(jnp.maximum(origins, 0), (0, padding))

        def written(array: Array, fresh: Array, pair: int, to: Array) -> Array:
            each = array.shape[0]
            here = (to != EMPTY) & ((to // each + stage) % stages == pair)
            # An index behind the last row is what a scatter drops; a negative one would count from the end.
            return array.at[jnp.where(here, to % each, each)].set(fresh, mode="drop")

        def read(arrays: Sequence[Array], from_: Array) -> Array:
            each = arrays[0].shape[0]
            of_pairs = [array[from_ % each] for array in arrays]
            pair = ((from_ // each + stage) % stages)[:, None, None, None]
            return functools.reduce(
                lambda rows, k: jnp.where(pair == k, of_pairs[k], rows), range(1, stages), of_pairs[0]
            )

        def some(turn: Array, cache: Cache) -> Cache:
            start = turn * together
            from_, to = (jax.lax.dynamic_slice_in_dim(rows, start, together) for rows in (origins, places))
            copied: list[list[Array]] = [[] for _ in cache]
            for first in range(0, len(cache), stages):
                for kind in range(2):
                    given = read([pair[kind] for pair in source[first : first + stages]], from_)
                    for k in range(stages):
                        array = cache[first + k][kind]
                        behind = ((0, 0), (0, 0), (0, array.shape[2] - given.shape[2]), (0, 0))
                        fresh = jnp.pad(given, behind).astype(array.dtype)
                        copied[first + k].append(written(array, fresh, k, to))
            return tuple((keys, values) for keys, values in copied)

        return jax.lax.fori_loop(0, -(-wanted // together), some, cache)

    rows, heads = layout.spec(("batch",)), layout.spec(NAMES)
    copy = jax.shard_map(
        local, mesh=layout.mesh, in_specs=(heads, heads, rows, rows), out_specs=heads, check_vma=False
    )
    return copy(cache, source, origins, places)
