"""Weights switch layouts bitwise, and receive exactly the bytes that the formula says."""

import dataclasses
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxflow.engine.compiled import received_by_position
from jaxflow.engine.layout_rules import Parallelism, nearest_layouts
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.transition import BUCKET_BYTES, transition
from jaxflow.engine.transition_plan import leaves_of, plan_transition
from jaxflow.models.transformer import LanguageModel, describe

NAMES = tiny.LANGUAGE_MODEL.names
TESTS = pathlib.Path(__file__).parents[1]
DEEP = describe(dataclasses.replace(tiny.CONFIG, layers=4), LanguageModel)
ANY = Parallelism(data=8, fsdp=1, tensor=1, generation_tensor=1, pipe=1, generation_pipe=1)
PAIRS = nearest_layouts(ANY, 8, DEEP.config, 1000)
FIGURE_8 = Parallelism(data=2, fsdp=1, tensor=4, generation_tensor=2, pipe=1, generation_pipe=1)
STAGES = Parallelism(data=1, fsdp=1, tensor=4, generation_tensor=2, pipe=2, generation_pipe=1)


def layouts(sizes):
    mesh = tiny.mesh_of(sizes)
    return training_layout(mesh).weights(NAMES), generation_layout(mesh).weights(NAMES)


def trained(sizes):
    return tiny.weights(tiny.LANGUAGE_MODEL, training_layout(tiny.mesh_of(sizes)))


def divided(one, devices):
    mesh = make_mesh(
        one.data, one.fsdp, one.tensor, one.generation_tensor, devices, one.pipe, one.generation_pipe
    )
    heads = {"kv_heads": DEEP.config.kv_heads}
    return [
        layout(mesh).fitting(heads).weights(DEEP.names) for layout in (training_layout, generation_layout)
    ]


@functools.cache
def deep_weights():
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), DEEP.shapes)


def assert_placed(params, shardings):
    for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def named(one):
    return "-".join(
        f"{field[:3] if '_' not in field else field[11]}{size}" for field, size in vars(one).items()
    )


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(one, id=named(one), marks=() if one in (FIGURE_8, STAGES) else pytest.mark.slow)
        for one in PAIRS
    ],
)
def test_train_generate_train_is_the_identity_at_the_least_traffic_and_back_for_nothing(pair):
    training, generation = divided(pair, jax.devices())
    source = jax.device_put(deep_weights(), training)
    there, report = transition(source, generation, "float32", release=True)
    assert_placed(there, generation)
    tiny.assert_same_bits(there, deep_weights())
    assert not any(report.redundant_bytes.values())
    least = [report.received_bytes[device.id] for device in jax.devices()]
    assert received_by_position(report.collectives, 8) == least
    micro = pair.pipe * pair.tensor // (pair.generation_pipe * pair.generation_tensor) * pair.fsdp
    assert {one.kind for one in report.collectives} <= {"all-gather"}
    assert all(len(group) <= micro for one in report.collectives for group in one.groups)
    back, report = transition(there, training, "float32", release=True)
    assert_placed(back, training)
    tiny.assert_same_bits(back, deep_weights())
    assert report.collectives == () and report.most_received_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "axes"),
    [((1, 2, 2, 1), {"expert": 2}), ((1, 1, 4, 1), {"pipe": 2})],
    ids=["experts", "fewer key/value heads than ranks, over stages"],
)
def test_a_mixture_with_few_key_value_heads_switches_as_a_dense_model_does(sizes, axes):
    changes = {"layers": 4, "kv_heads": 2, "experts": 4, "experts_per_token": 2, "tied_embeddings": True}
    model = describe(dataclasses.replace(tiny.CONFIG, **changes), LanguageModel)
    mesh = make_mesh(*sizes, jax.devices(), **axes)
    training, generation = (
        layout(mesh, model.config).weights(model.names) for layout in (training_layout, generation_layout)
    )
    params = tiny.weights(model, training_layout(mesh, model.config))
    before = jax.device_get(params)
    there, report = transition(params, generation, "float32", release=True)
    assert_placed(there, generation)
    assert not any(report.redundant_bytes.values()) and {one.kind for one in report.collectives} == {
        "all-gather"
    }
    least = [report.received_bytes[device.id] for device in jax.devices()]
    assert received_by_position(report.collectives, 8) == least
    back, report = transition(there, training, "float32", release=True)
    assert report.collectives == () and report.most_received_bytes == 0
    tiny.assert_same_bits(back, before)


def test_all_pairs_of_layouts_are_among_the_cases():
    assert {FIGURE_8, STAGES} < set(PAIRS)
    assert {(one.pipe, one.generation_pipe) for one in PAIRS} == {
        (1, 1),
        (2, 1),
        (2, 2),
        (4, 1),
        (4, 2),
        (4, 4),
    }
    assert {one.tensor for one in PAIRS} == {1, 2, 4, 8}


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


def test_layouts_that_break_the_prefix_rule_have_their_cost_stated():
    """Generation on consecutive ranks, Fig. 8(a): some shards are held for nothing, and more must travel."""
    mesh = tiny.mesh_of(tiny.MESHES["data2_tensor4_to_2"])
    shape = jax.ShapeDtypeStruct((64,), jnp.float32)

    def cost(training, generation):
        ends = [jax.NamedSharding(mesh, jax.P(axes)) for axes in (training, generation)]
        return plan_transition(leaves_of(shape, *ends), "float32", False, BUCKET_BYTES).cost

    nested, vanilla = cost(("tensor", "micro"), "tensor"), cost(("micro", "tensor"), "tensor")
    assert (nested.most_received_bytes, max(nested.redundant_bytes.values())) == (64, 0)
    assert (vanilla.most_received_bytes, max(vanilla.redundant_bytes.values())) == (128, 64)
    assert sum(received_by_position(vanilla.collectives, 8)) > sum(
        received_by_position(nested.collectives, 8)
    )


def test_weights_that_already_lie_right_are_passed_on_as_they_are():
    sizes = tiny.MESHES["data8"]
    source = trained(sizes)
    result, report = transition(source, layouts(sizes)[1], "float32", release=True)
    for before, after in zip(jax.tree.leaves(source), jax.tree.leaves(result), strict=True):
        assert after is before and not after.is_deleted()
    assert report.most_received_bytes == 0 and report.moved_leaves == 0 and report.collectives == ()
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


def test_released_sources_are_gone_and_lower_the_peak_by_all_but_the_last_bucket():
    sizes = tiny.MESHES["data2_tensor4_to_2"]
    generation = layouts(sizes)[1]
    source = trained(sizes)
    _, kept = transition(source, generation, "float32", bucket_bytes=1)
    result, released = transition(source, generation, "float32", release=True, bucket_bytes=1)
    aliased = {id(leaf) for leaf in jax.tree.leaves(result)}
    assert all(leaf.is_deleted() != (id(leaf) in aliased) for leaf in jax.tree.leaves(source))
    end = max(released.held_bytes.values())
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(result))
    assert end < released.peak_bytes <= end + largest
    # All training shards beside all generation shards: M/t more than the end, but for the norms they share.
    moved = sum(leaf.nbytes for leaf in jax.tree.leaves(result) if leaf.ndim > 1 and "norm" not in str(leaf))
    assert kept.peak_bytes > released.peak_bytes and kept.peak_bytes - end <= moved


def test_buckets_hold_at_least_their_bytes_and_every_moving_leaf_once():
    training, generation = divided(FIGURE_8, jax.devices())
    leaves = leaves_of(DEEP.shapes, training, generation)
    sizes = [4 * int(np.prod(leaf.target.shard_shape(leaf.shape))) for leaf in leaves]
    plan = plan_transition(leaves, "float32", False, 3000)
    filled = [sum(sizes[i] for i in bucket.indices) for bucket in plan.buckets]
    assert len(filled) > 2 and min(filled[:-1]) >= 3000
    moved = [i for bucket in plan.buckets for i in bucket.indices]
    assert sorted(moved) == [i for i, leaf in enumerate(leaves) if not leaf.in_place]


def test_a_plan_is_made_once():
    training, generation = divided(FIGURE_8, jax.devices())
    source = jax.device_put(deep_weights(), training)
    _, first = transition(source, generation, "float32")
    made = plan_transition.cache_info().misses
    _, second = transition(source, generation, "float32")
    assert plan_transition.cache_info().misses == made
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(second, seconds=0.0)


@pytest.mark.parametrize("release", [False, True])
def test_weights_reach_a_mesh_of_other_devices_and_come_back(release):
    training = divided(dataclasses.replace(FIGURE_8, data=1), jax.devices()[:4])[0]
    elsewhere = divided(dataclasses.replace(STAGES, pipe=1), jax.devices()[4:])[1]
    source = jax.device_put(deep_weights(), training)
    there, report = transition(source, elsewhere, "float32", release=release)
    assert_placed(there, elsewhere)
    tiny.assert_same_bits(there, deep_weights())
    assert report.received_bytes == report.held_bytes, "a device that had nothing gets its shard, no more"
    assert all(leaf.is_deleted() == release for leaf in jax.tree.leaves(source))
    back, _ = transition(there, training, "float32", release=release)
    tiny.assert_same_bits(back, deep_weights())


@pytest.mark.slow
def test_two_processes_switch_there_and_back_bitwise_at_the_least_traffic():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "JAX_PLATFORMS": "cpu",
    }
    script = str(TESTS / "engine" / "transition_process.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    for output, _ in ended:
        for found in json.loads(output.splitlines()[-1]):
            assert found["same_bits"] and found["collectives_back"] == 0
            assert found["received"] == found["counted"] and max(found["counted"]) > 0
