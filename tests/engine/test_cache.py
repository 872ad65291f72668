"""The key/value cache has the size that its formula says, and buffers of its own."""

import jax
import pytest
import tiny

from jaxflow.engine.cache import empty_cache
from jaxflow.engine.sharding import generation_layout


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_a_cache_holds_two_times_layers_rows_heads_positions_and_no_more(dtype, itemsize):
    layout = generation_layout(tiny.mesh_of((2, 1, 4, 2)))
    cache = jax.jit(lambda: empty_cache(tiny.CONFIG, 8, 24, dtype, layout))()
    leaves = jax.tree.leaves(cache)
    assert len(leaves) == 2 * tiny.CONFIG.layers
    config = tiny.CONFIG
    expected = 2 * config.layers * 8 * config.kv_heads * 24 * config.head_width * itemsize
    assert sum(leaf.nbytes for leaf in leaves) == expected
    pointers = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


def test_rows_and_heads_are_spread_over_the_mesh():
    layout = generation_layout(tiny.mesh_of((2, 1, 4, 2)))
    keys = jax.jit(lambda: empty_cache(tiny.CONFIG, 8, 24, "float32", layout))()[0][0]
    assert {shard.data.shape for shard in keys.addressable_shards} == {(2, 2, 24, 4)}
