"""Weights switch layouts bitwise, and receive exactly the bytes that the formula says."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.transition import received_elements, transition

NAMES = tiny.LANGUAGE_MODEL.names


def layouts(sizes):
    mesh = tiny.mesh_of(sizes)
    return training_layout(mesh).weights(NAMES), generation_layout(mesh).weights(NAMES)


def trained(sizes):
    return tiny.weights(tiny.LANGUAGE_MODEL, training_layout(tiny.mesh_of(sizes)))


def assert_placed(params, shardings):
    for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@tiny.ON_EVERY_MESH
def test_there_and_back_is_bitwise_and_the_way_back_receives_nothing(sizes):
    training, generation = layouts(sizes)
    source = trained(sizes)
    there, _ = transition(source, generation, "float32")
    assert_placed(there, generation)
    tiny.assert_same_bits(there, source)
    back, report = transition(there, training, "float32")
    assert_placed(back, training)
    tiny.assert_same_bits(back, source)
    assert report.most_received_bytes == 0


@tiny.ON_EVERY_MESH
def test_received_bytes_are_what_generation_holds_less_what_training_held(sizes):
    """M/t_g − M/(t·fsdp) per device, over the weights M that are sharded at all."""
    _, fsdp, tensor, generation_tensor = sizes
    _, generation = layouts(sizes)
    source = trained(sizes)
    _, report = transition(source, generation, "float32")
    leaves = jax.tree.leaves_with_path(source)
    sharded = sum(leaf.nbytes for path, leaf in leaves if "scale" not in jax.tree_util.keystr(path))
    everything = sum(leaf.nbytes for _, leaf in leaves)
    expected = sharded // generation_tensor - sharded // (tensor * fsdp)
    assert set(report.received_bytes) == {device.id for device in jax.devices()}
    assert set(report.received_bytes.values()) == {expected}
    assert report.most_received_bytes == expected
    assert set(report.held_bytes.values()) == {sharded // generation_tensor + everything - sharded}


def test_weights_that_already_lie_right_are_passed_on_as_they_are():
    sizes = tiny.MESHES["data8"]
    source = trained(sizes)
    result, report = transition(source, layouts(sizes)[1], "float32")
    for before, after in zip(jax.tree.leaves(source), jax.tree.leaves(result), strict=True):
        assert after is before
    assert report.most_received_bytes == 0 and report.moved_leaves == 0
    assert report.aliased_leaves == len(jax.tree.leaves(source))


def test_only_what_must_move_moves():
    sizes = tiny.MESHES["data2_tensor4_to_2"]
    source = trained(sizes)
    result, report = transition(source, layouts(sizes)[1], "float32")
    assert report.moved_leaves + report.aliased_leaves == len(jax.tree.leaves(source))
    assert result["backbone"]["final_norm"]["scale"] is source["backbone"]["final_norm"]["scale"]
    assert report.aliased_leaves == 3, "the norms"


@tiny.ON_EVERY_MESH
def test_a_cast_rounds_once_and_counts_the_smaller_bytes(sizes):
    _, generation = layouts(sizes)
    source = trained(sizes)
    narrow, report = transition(source, generation, "bfloat16")
    _, wide_report = transition(source, generation, "float32")
    assert_placed(narrow, generation)
    tiny.assert_same_bits(
        jax.device_get(narrow),
        jax.tree.map(lambda w: np.asarray(w).astype(jnp.bfloat16), jax.device_get(source)),
    )
    assert 2 * report.most_received_bytes == wide_report.most_received_bytes
    assert {2 * held for held in report.held_bytes.values()} == set(wide_report.held_bytes.values())


def test_the_source_is_left_intact():
    sizes = tiny.MESHES["fsdp2_tensor4_to_1"]
    source = trained(sizes)
    before = jax.tree.map(np.array, jax.device_get(source))
    transition(source, layouts(sizes)[1], "bfloat16")
    tiny.assert_same_bits(source, before)


def test_elements_that_must_be_received_are_those_of_the_target_not_held_before():
    mesh = tiny.mesh_of((1, 2, 4, 2))
    rows = jax.NamedSharding(mesh, jax.P(("tensor", "micro"), "fsdp"))
    target = jax.NamedSharding(mesh, jax.P("tensor", None))
    received = received_elements((16, 6), rows, target)
    assert received == {device.id: 8 * 6 - 4 * 3 for device in mesh.devices.flat}
    columns = jax.NamedSharding(mesh, jax.P(None, ("fsdp", "micro", "tensor")))
    assert received_elements((16, 8), columns, columns) == dict.fromkeys(received, 0)


def test_elements_of_a_device_that_held_nothing_are_all_received():
    here = jax.NamedSharding(tiny.ONE_DEVICE, jax.P())
    everywhere = jax.NamedSharding(tiny.mesh_of((2, 1, 1, 1)), jax.P("data"))
    first, second = (device.id for device in jax.devices()[:2])
    assert received_elements((10,), here, everywhere) == {first: 0, second: 5}
