"""Bytes per device are those that the shardings give; the banner shows layouts as pools have them."""

import dataclasses
import math

import jax
import pytest
from good_config import config, split_config

from jaxflow.batch_algebra import derive
from jaxflow.batch_algebra import describe as describe_run
from jaxflow.config import MeshConfig
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.models.adapters import Adapters
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe
from jaxflow.placement import (
    MeshSizes,
    RoleBytes,
    dealt_cores,
    describe_pool,
    mesh_sizes,
    parameter_count,
    readable_bytes,
    role_bytes,
)

MODEL = DecoderConfig(
    vocabulary_size=100, width=64, layers=4, heads=8, kv_heads=4, head_width=16, mlp_width=96
)


def numbers_on_a_device(layout, model) -> int:
    """Count the numbers of one device's shards, from the shardings that the engine uses."""
    shards = jax.tree.map(
        lambda shape, sharding: math.prod(sharding.shard_shape(shape.shape)),
        model.shapes,
        layout.weights(model.names),
    )
    return sum(jax.tree.leaves(shards))


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(),
        MeshConfig(2, 1, 4, 2),
        MeshConfig(1, 2, 4, 1),
        MeshConfig(1, 1, 8, 8),
        MeshConfig(1, 1, 2, 1, 4),
        MeshConfig(1, 2, 2, 1, expert=2),
    ],
)
@pytest.mark.parametrize(
    "different",
    [
        {},
        {"tied_embeddings": True, "attention_bias": True, "post_norms": True, "head_padding": 2},
        {"experts": 4, "experts_per_token": 2, "query_key_norm": True},
    ],
    ids=["plain", "dense", "experts"],
)
@pytest.mark.parametrize(("role", "kind"), [("actor", LanguageModel), ("critic", ScalarModel)])
def test_bytes_are_those_of_the_engines_own_shardings(role, kind, different, mesh):
    decoder = dataclasses.replace(MODEL, **different)
    devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.expert * mesh.tensor * mesh.pipe]
    placed = make_mesh(
        mesh.data,
        mesh.fsdp,
        mesh.tensor,
        mesh.generation_tensor,
        devices,
        pipe=mesh.pipe,
        expert=mesh.expert,
    )
    model = describe(decoder, kind)
    training = numbers_on_a_device(training_layout(placed, decoder), model)
    generation = numbers_on_a_device(generation_layout(placed, decoder), model) if role == "actor" else 0
    held = role_bytes(role, decoder, mesh_sizes(mesh), "bfloat16")
    assert held == RoleBytes(weights=4 * training, training=12 * training, rollout=2 * generation)
    assert parameter_count(role, decoder) == sum(leaf.size for leaf in jax.tree.leaves(model.shapes))


def test_beside_adapters_only_they_and_a_scalar_head_have_gradients_and_moments():
    adapters, mesh = Adapters(2, 4.0, ("query", "down"), "bfloat16"), MeshConfig(1, 2, 4, 1)
    layout = training_layout(make_mesh(1, 2, 4, 1, jax.devices()), MODEL)
    for role, kind in (("actor", LanguageModel), ("critic", ScalarModel)):
        model = describe(MODEL, kind, adapters)
        shards = jax.tree.map(
            lambda shape, sharding: math.prod(sharding.shard_shape(shape.shape)),
            model.shapes,
            layout.weights(model.names),
        )
        trained, frozen = (sum(jax.tree.leaves(part(shards))) for part in (model.trained, model.frozen))
        held = role_bytes(role, MODEL, mesh_sizes(mesh), "float32", adapters)
        assert held.weights == 4 * trained + 2 * frozen and held.training == 12 * trained
        assert held.rollout == role_bytes(role, MODEL, mesh_sizes(mesh), "float32").rollout


def test_frozen_models_keep_weights_alone():
    mesh = MeshSizes(data=1, fsdp=1, tensor=1, micro=1)
    for role, trained in (("reference", "actor"), ("reward", "critic")):
        weights = role_bytes(trained, MODEL, mesh, "float32").weights
        assert role_bytes(role, MODEL, mesh, "float32") == RoleBytes(weights, 0, 0)


def test_axes_multiply_to_devices_and_replicas():
    mesh = mesh_sizes(MeshConfig(data=2, fsdp=3, tensor=8, generation_tensor=2, pipe=5, expert=2))
    assert mesh == MeshSizes(data=2, fsdp=3, tensor=2, micro=4, pipe=1, micro_pipe=5, expert=2)
    assert (mesh.devices, mesh.training_tensor, mesh.stages) == (480, 8, 5)
    assert (mesh.training_replicas, mesh.generation_replicas) == (12, 240)
    mesh = mesh_sizes(MeshConfig(tensor=8, generation_tensor=4, pipe=6, generation_pipe=3))
    assert (mesh.pipe, mesh.micro_pipe, mesh.stages, mesh.generation_replicas) == (3, 2, 6, 4)


def test_a_pool_is_described_by_hosts_layouts_and_bytes():
    derived = derive(split_config(), 100)
    models = {"actor": derived.actor_model, "critic": derived.critic_model}
    main, judges = (
        list(describe_pool(name, plan, models, "bfloat16", {})) for name, plan in derived.pools.items()
    )
    # 4 layers of (3·128·512 + 2·128·32·8) and two tables of 128 (padded) × 128, over t = 4 and t_g = 2; 9 norms.
    assert main == [
        "pool main: 2 hosts × 4 devices → actor, reference",
        "  training    data 2 × fsdp 1 × tensor 4 → rows over 2 replicas",
        "  generation  data 2 × fsdp 1 × micro 2 × tensor 2 → rows over 4 replicas",
        "  actor       1,082,496 parameters → per device 1.09 MB weights, 3.26 MB gradients and optimizer,"
        " 1.08 MB rollout weights",
        "  reference   no weights",
    ]
    # One table and a vector of 128 in place of the other.
    assert judges == [
        "pool judges: 1 host × 3 devices → critic, reward, estimator",
        "  training    data 3 × fsdp 1 × tensor 1 → rows over 3 replicas",
        "  critic      1,066,240 parameters → per device 4.26 MB weights, 12.79 MB gradients and optimizer",
        "  reward      no weights",
        "  estimator   no weights",
    ]


def test_a_pool_of_one_device_is_spelt_in_the_singular():
    changes = {f"cluster__pools__main__mesh__{axis}": 1 for axis in ("data", "tensor", "generation_tensor")}
    derived = derive(config(**changes, cluster__pools__main__devices_per_host=1), 100)
    first, second, *_ = describe_pool("main", derived.pools["main"], {}, "float32", {})
    assert first.startswith("pool main: 1 host × 1 device → ") and second.endswith("over 1 replica")


def test_bytes_are_readable_at_every_size():
    assert [readable_bytes(size) for size in (1_000, 999_990_000, 26_031_369_600, 10**13)] == [
        "0.00 MB",
        "999.99 MB",
        "26.03 GB",
        "10,000.00 GB",
    ]


def test_weights_for_generation_lie_where_generation_is():
    pools = {
        "cluster__pools__main__roles": ["actor", "critic", "reference", "reward", "estimator"],
        "cluster__pools__rollouts__roles": ["generator"],
    }
    changed = config(**pools)
    text = describe_run(changed, derive(changed, 100))
    assert text.count("rollout weights") == 1 and text.count("  generation  ") == 1
    (line,) = [line for line in text.split("\n") if line.startswith("  generator ")]
    model = dataclasses.replace(changed.actor.model, vocabulary_size=100)
    held = role_bytes("generator", model, MeshSizes(1, 1, 1, 1), "float32")
    assert line.endswith(f"per device {readable_bytes(held.rollout)} rollout weights")
    assert held == RoleBytes(weights=0, training=0, rollout=4 * model.parameter_count)


@pytest.mark.parametrize(
    ("hosts", "available", "dealt"),
    [
        ({"one": 1}, [0, 1], {"one": [()]}),  # a single process may use all
        ({"one": 2, "two": 1}, [], {"one": [(), ()], "two": [()]}),
        ({"one": 2, "two": 1}, [4, 7], {"one": [(4,), (7,)], "two": [(4,)]}),
        ({"one": 1, "two": 1}, [0, 1, 2, 3, 4], {"one": [(0, 1)], "two": [(2, 3, 4)]}),
    ],
)
def test_cores_are_dealt_evenly_and_shared_where_there_are_too_few(hosts, available, dealt):
    assert dealt_cores(hosts, available) == dealt
