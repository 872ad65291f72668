"""The table of layouts: prefix rule, specs, replicas."""

import jax
import pytest
import tiny

from jaxflow.engine.sharding import TABLE, broken_prefixes, generation_layout, training_layout

MESH = tiny.mesh_of((1, 2, 4, 2))


def test_the_table_keeps_the_prefix_rule():
    assert broken_prefixes(TABLE) == []


@pytest.mark.parametrize(
    ("training", "generation"),
    [((), ("tensor",)), (("tensor", "micro"), ("micro",)), (("tensor",), ("tensor", "micro"))],
)
def test_a_broken_prefix_is_named(training, generation):
    assert broken_prefixes(TABLE | {"mlp": (training, generation)}) == ["mlp"]


def test_the_batch_is_no_weight_and_may_break_the_rule():
    training, generation = TABLE["batch"]
    assert generation != training[: len(generation)]


def test_specs_follow_the_columns():
    names = ("embed", "heads", None)
    assert training_layout(MESH).spec(names) == jax.P("fsdp", ("tensor", "micro"), None)
    assert generation_layout(MESH).spec(names) == jax.P(None, "tensor", None)


def test_replicas_are_the_shards_of_the_batch():
    assert training_layout(MESH).replicas == 2
    assert generation_layout(MESH).replicas == 4
    assert training_layout(tiny.ONE_DEVICE).replicas == 1


@pytest.mark.parametrize("sizes", tiny.MESHES.values(), ids=tiny.MESHES.keys())
def test_each_generation_shard_contains_its_device_s_training_shard(sizes):
    mesh = tiny.mesh_of(sizes)
    shapes = jax.tree.leaves(tiny.LANGUAGE_MODEL.shapes)
    training = jax.tree.leaves(training_layout(mesh).weights(tiny.LANGUAGE_MODEL.names))
    generation = jax.tree.leaves(generation_layout(mesh).weights(tiny.LANGUAGE_MODEL.names))
    for leaf, before, after in zip(shapes, training, generation, strict=True):
        for device in mesh.devices.flat:
            pairs = zip(
                before.devices_indices_map(leaf.shape)[device],
                after.devices_indices_map(leaf.shape)[device],
                leaf.shape,
                strict=True,
            )
            for small, large, size in pairs:
                (start, stop, _), (from_, to, _) = small.indices(size), large.indices(size)
                assert from_ <= start and stop <= to
