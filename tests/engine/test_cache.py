"""The key/value cache has the size that its formula says, and buffers of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxflow.engine.cache import copy_rows, empty_cache
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


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 1, 4, 2)], ids=["one device", "eight"])
def test_rows_are_copied_whole_within_their_replica_and_nothing_of_before_is_left(sizes):
    layout = generation_layout(tiny.mesh_of(sizes))
    replicas, slots, prompts, count = layout.replicas, 20, 3, 11
    generator = np.random.default_rng(0)
    origins = generator.integers(0, prompts, (replicas, slots)).astype(np.int32)
    places = np.full((replicas, slots), -1, np.int32)
    for replica in places:
        replica[:count] = generator.permutation(slots)[:count]
    given = generator.normal(size=(replicas * prompts, 4, 5, 4)).astype(np.float32)
    copied = jax.jit(lambda *arrays: copy_rows(*arrays, layout))(
        ((jnp.full((replicas * slots, 4, 9, 4), jnp.nan, jnp.bfloat16),) * 2,) * 2,
        ((given, -given),) * 2,
        origins.reshape(-1),
        places.reshape(-1),
    )
    expected = np.full((replicas, slots, 4, 9, 4), np.nan, np.float32)
    for replica in range(replicas):
        for origin, place in zip(origins[replica, :count], places[replica, :count], strict=True):
            expected[replica, place] = np.pad(given[replica * prompts + origin], ((0, 0), (0, 4), (0, 0)))
    expected = expected.reshape(-1, 4, 9, 4)
    for keys, values in copied:
        np.testing.assert_allclose(np.asarray(keys, np.float32), expected, rtol=2**-8)
        np.testing.assert_allclose(np.asarray(values, np.float32), -expected, rtol=2**-8)
