"""State is born sharded, and comes back bitwise onto any mesh, or not at all."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import tiny

from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import (
    load_weights,
    new_head,
    new_state,
    new_weights,
    restore_state,
    restore_weights,
    save_state,
    save_weights,
)
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe
from jaxflow.types import UserError

TRANSFORMATION = tiny.optimizer(schedule="cosine", clip_norm=1.0).transformation()


# Creation is the dearest program to compile; the first mesh cuts weights over both axes that there are.
ON_TWO_MESHES = pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(tiny.MESHES["data2_fsdp2_tensor2"], id="fsdp2_tensor2"),
        pytest.param(tiny.MESHES["data2_tensor4_to_2"], id="tensor4_to_2", marks=pytest.mark.slow),
    ],
)


def layout_of(name):
    return training_layout(tiny.mesh_of(tiny.MESHES[name]))


def moved_state(layout):
    """A state whose every leaf differs from a fresh one's, without the cost of a training step."""
    params = tiny.weights(tiny.LANGUAGE_MODEL, layout)
    state = new_state(tiny.LANGUAGE_MODEL, layout, TRANSFORMATION, params)
    generator = np.random.default_rng(0)

    def changed(leaf):
        noise = generator.normal(size=leaf.shape) if leaf.ndim > 0 else 3
        return jax.device_put(np.asarray(noise, leaf.dtype), leaf.sharding)

    return jax.tree.map(changed, state)


@ON_TWO_MESHES
def test_weights_are_born_sharded(sizes):
    layout = training_layout(tiny.mesh_of(sizes))
    _, fsdp, tensor, _ = sizes
    born = new_weights(tiny.LANGUAGE_MODEL, layout, 0, 0)
    for path, leaf in jax.tree.leaves_with_path(born):
        name = jax.tree_util.keystr(path)
        share = 1 if "scale" in name else fsdp * tensor
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // share}, name


@ON_TWO_MESHES
def test_weights_of_a_seed_are_the_same_on_every_mesh(sizes):
    layout = training_layout(tiny.mesh_of(sizes))
    alone = new_weights(tiny.LANGUAGE_MODEL, training_layout(tiny.ONE_DEVICE), 7, 0)
    # The bits drawn are the same; the compiler may contract the scaling of a normal draw differently.
    for spread, whole in zip(
        jax.tree.leaves(new_weights(tiny.LANGUAGE_MODEL, layout, 7, 0)), jax.tree.leaves(alone), strict=True
    ):
        np.testing.assert_allclose(np.asarray(spread), np.asarray(whole), rtol=1e-6)


def test_seeds_and_streams_keep_models_apart():
    layout = training_layout(tiny.ONE_DEVICE)
    tables = [
        np.asarray(new_weights(tiny.LANGUAGE_MODEL, layout, seed, stream)["backbone"]["embedding"])
        for seed, stream in ((0, 0), (0, 1), (1, 0))
    ]
    assert not any(np.array_equal(a, b) for a, b in zip(tables, [*tables[1:], tables[0]], strict=True))


def test_moments_lie_where_their_weights_lie():
    layout = layout_of("data2_fsdp2_tensor2")
    state = new_state(tiny.LANGUAGE_MODEL, layout, TRANSFORMATION, tiny.weights(tiny.LANGUAGE_MODEL, layout))
    for moment in ("mu", "nu"):
        moments = jax.tree.leaves(optax.tree.get(state.optimizer_state, moment))
        for weight, leaf in zip(jax.tree.leaves(state.params), moments, strict=True):
            assert leaf.sharding.is_equivalent_to(weight.sharding, weight.ndim)
            assert leaf.dtype == np.float32 and not np.asarray(leaf).any()
    assert int(state.updates) == int(state.skipped) == 0


@pytest.mark.parametrize("name", ["fsdp8", "fsdp2_tensor4_to_1"])
def test_a_state_comes_back_bitwise_on_another_mesh(name, tmp_path):
    state = moved_state(layout_of("data2_fsdp2_tensor2"))
    save_state(tmp_path, tiny.LANGUAGE_MODEL, state)
    layout = layout_of(name)
    restored = restore_state(tmp_path, tiny.LANGUAGE_MODEL, layout, TRANSFORMATION, {})
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    tiny.assert_same_bits(restored, state)
    shardings = jax.tree.leaves(layout.weights(tiny.LANGUAGE_MODEL.names))
    for leaf, sharding in zip(jax.tree.leaves(restored.params), shardings, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_a_scalar_model_takes_a_language_model_s_backbone_under_its_own_head(tmp_path):
    layout = layout_of("fsdp8")
    params = tiny.weights(tiny.LANGUAGE_MODEL, layout)
    save_weights(tmp_path / "weights", tiny.LANGUAGE_MODEL, params)
    taken = restore_weights(tmp_path / "weights", tiny.SCALAR_MODEL, layout, ("backbone",))
    assert list(taken) == ["backbone"]
    tiny.assert_same_bits(taken["backbone"], params["backbone"])
    whole, report = load_weights(tmp_path / "weights", tiny.SCALAR_MODEL, layout, ("backbone", "head"))
    tiny.assert_same_bits(whole["backbone"], params["backbone"])
    assert not np.asarray(whole["head"]["weight"]).any() and report is None


def test_weights_within_a_state_are_weights(tmp_path):
    state = moved_state(training_layout(tiny.ONE_DEVICE))
    save_state(tmp_path, tiny.LANGUAGE_MODEL, state)
    layout = training_layout(tiny.ONE_DEVICE)
    params = restore_weights(tmp_path / "weights", tiny.LANGUAGE_MODEL, layout, ("backbone", "head"))
    tiny.assert_same_bits(params, state.params)


def test_a_tied_model_has_no_head_to_restore(tmp_path):
    layout = training_layout(tiny.ONE_DEVICE)
    tied = describe(dataclasses.replace(tiny.CONFIG, tied_embeddings=True), LanguageModel)
    params = tiny.weights(tied, layout)
    save_weights(tmp_path / "weights", tied, params)
    tiny.assert_same_bits(restore_weights(tmp_path / "weights", tied, layout, ("backbone", "head")), params)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(LanguageModel, {"mlp_width": 128}), (LanguageModel, {"layers": 3}), (ScalarModel, {})],
    ids=["wider", "deeper", "other head"],
)
def test_another_model_s_state_is_refused(kind, changes, tmp_path):
    layout = training_layout(tiny.ONE_DEVICE)
    save_state(tmp_path, tiny.LANGUAGE_MODEL, moved_state(layout))
    other = describe(dataclasses.replace(tiny.CONFIG, **changes), kind)
    with pytest.raises(UserError, match="another model"):
        restore_state(tmp_path, other, layout, TRANSFORMATION, {})


def test_another_optimizer_s_state_is_refused(tmp_path):
    layout = training_layout(tiny.ONE_DEVICE)
    save_state(tmp_path, tiny.LANGUAGE_MODEL, moved_state(layout))
    with pytest.raises(UserError, match="differ"):
        restore_state(tmp_path, tiny.LANGUAGE_MODEL, layout, optax.sgd(0.1, momentum=0.9), {})


def test_a_head_made_alone_is_the_head_made_with_the_rest():
    layout = training_layout(tiny.ONE_DEVICE)
    whole = new_weights(tiny.LANGUAGE_MODEL, layout, 3, 1)
    alone = new_head(tiny.LANGUAGE_MODEL, layout, 3, 1)
    np.testing.assert_array_equal(np.asarray(alone["head"]["matrix"]), np.asarray(whole["head"]["matrix"]))
