"""What waits in host memory comes back as it went, and leaves the devices meanwhile."""

import jax
import numpy as np
import tiny

from jaxflow.engine.offload import DEVICE_MEMORY, HOST_MEMORY, Frozen, to_devices, to_host
from jaxflow.engine.sharding import training_layout

LAYOUT = training_layout(tiny.mesh_of((2, 2, 2, 1)), tiny.CONFIG)


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def bytes_per_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_there_and_back_is_the_identity_and_leaves_nothing_behind():
    params = tiny.weights(tiny.LANGUAGE_MODEL, LAYOUT)
    before, shardings = jax.device_get(params), jax.tree.map(lambda leaf: leaf.sharding, params)
    size = bytes_per_device(params)
    waiting, there = to_host(params)
    assert kinds(waiting) == {HOST_MEMORY} and there.bytes == size
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    back, here = to_devices(waiting)
    assert kinds(back) == {DEVICE_MEMORY} and here.bytes == size
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(waiting))
    assert jax.tree.all(
        jax.tree.map(lambda leaf, was: leaf.sharding.is_equivalent_to(was, leaf.ndim), back, shardings)
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), before)


def test_frozen_weights_are_on_the_devices_only_while_they_are_used():
    params = tiny.weights(tiny.SCALAR_MODEL, LAYOUT)
    before = jax.device_get(params)
    frozen = Frozen(params, offload=True)
    for _ in range(2):
        with frozen.at_hand() as (here, moved):
            assert kinds(here) == {DEVICE_MEMORY} and moved.bytes > 0
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(here), before)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(here))


def test_weights_that_stay_are_handed_out_as_they_are():
    params = tiny.weights(tiny.SCALAR_MODEL, LAYOUT)
    with Frozen(params, offload=False).at_hand() as (here, moved):
        assert here is params and moved is None
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
