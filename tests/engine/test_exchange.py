"""Weights arrive in another world as they left: every shard whole, no box twice, nothing whole anywhere."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.exchange import Arrivals, Route, leaf_shards, send
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.shards import Shard, elements

MODEL = tiny.LANGUAGE_MODEL


def layouts(sources, targets):
    """A training layout on the first devices, a generation layout on others."""
    count = int(np.prod(sources[:3]))
    devices = jax.devices()
    training = training_layout(make_mesh(*sources, devices[:count]), MODEL.config)
    rest = devices[-int(np.prod(targets[:3])) :]
    return training, generation_layout(make_mesh(*targets, rest), MODEL.config)


def owned(shards, devices_per_process):
    """The same shards as if so many neighbouring devices were a process of their own."""

    def moved(shard: Shard, index: int) -> Shard:
        holder = dataclasses.replace(shard.holder, process=index // devices_per_process)
        return dataclasses.replace(shard, holder=holder)

    return tuple(tuple(moved(shard, i) for i, shard in enumerate(leaf)) for leaf in shards)


@pytest.mark.parametrize(
    ("dtype", "bucket_bytes"), [("float32", 1), ("bfloat16", 20_000), ("float32", 1 << 30)]
)
def test_what_arrives_is_what_left_in_any_number_of_buckets(dtype, bucket_bytes):
    training, generation = layouts((1, 2, 2, 1), (1, 1, 4, 2))
    params, shardings = tiny.weights(MODEL, training), generation.weights(MODEL.names)
    sources = leaf_shards("actor", MODEL.shapes, training.weights(MODEL.names))
    targets = leaf_shards("generator", MODEL.shapes, shardings)
    route = Route(sources, targets, np.dtype(dtype).itemsize, bucket_bytes)
    assert [leaf for bucket in route.buckets for leaf in bucket] == list(range(len(sources)))
    arrivals = Arrivals(route, MODEL.shapes, shardings, dtype)
    received = 0
    for bucket in range(len(route.buckets)):
        with pytest.raises(RuntimeError, match="before all of them had arrived"):
            arrivals.take()
        (message,) = send(route, bucket, jax.tree.leaves(params), dtype)
        received += arrivals.receive(bucket, [message])
    expected = jax.tree.map(lambda leaf, to: jax.device_put(leaf.astype(dtype), to), params, shardings)
    arrived = arrivals.take()
    jax.tree.map(np.testing.assert_array_equal, arrived, expected)
    for leaf, wanted in zip(jax.tree.leaves(arrived), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim) and leaf.dtype == dtype
    assert received == sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(expected))


@pytest.mark.parametrize("per_process", [(1, 1), (2, 1), (2, 4), (4, 2)])
def test_every_process_gets_each_box_that_its_devices_lack_once(per_process):
    training, generation = layouts((1, 2, 2, 1), (1, 1, 4, 1))
    sources = owned(leaf_shards("actor", MODEL.shapes, training.weights(MODEL.names)), per_process[0])
    targets = owned(leaf_shards("generator", MODEL.shapes, generation.weights(MODEL.names)), per_process[1])
    route = Route(sources, targets, 4, 1 << 30)
    senders, receivers = 4 // per_process[0], 4 // per_process[1]
    assert (len(route.buckets), route.receiving) == (1, receivers)
    for receiver in range(receivers):
        boxes = [box for sender in range(senders) for box in route.boxes(0, sender, receiver)]
        # Generation holds all of a weight on each device here: every process gets the whole model once, no more.
        wanted = sum(leaf.size for leaf in jax.tree.leaves(MODEL.shapes))
        assert sum(elements(box.extent) for box in boxes) == wanted
        assert len({(box.leaf, box.extent) for box in boxes}) == len(boxes)
    if senders > 1:
        sent = [sum(elements(b.extent) for b in route.boxes(0, sender, 0)) for sender in range(senders)]
        assert max(sent) < 0.75 * wanted
