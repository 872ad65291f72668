"""The decoder computes what the formulas say, whatever is padded, tied, rematerialised or narrowed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from models import numpy_decoder

from jaxflow.engine import attention
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import new_weights
from jaxflow.models.heads import PADDING_LOGIT
from jaxflow.models.layers import Surroundings
from jaxflow.models.transformer import LanguageModel, describe

LAYOUT = training_layout(tiny.ONE_DEVICE)
TOKENS = np.random.default_rng(0).integers(0, tiny.CONFIG.vocabulary_size, (3, 11))


def hidden_of(module, tokens):
    around = Surroundings(attention.whole_sequence("cpu"), lambda x, _: x)
    return module.backbone(jnp.asarray(tokens), around)


def logits_of(model, params, tokens):
    def traced(params, tokens):
        module = model.bind(params)
        return module.logits(hidden_of(module, tokens))

    return jax.jit(traced)(params, tokens)


@jax.jit
def scalars_of(params, tokens):
    module = tiny.SCALAR_MODEL.bind(params)
    return module.scalars(hidden_of(module, tokens))


def variant(**changes):
    return describe(dataclasses.replace(tiny.CONFIG, **changes), LanguageModel)


@pytest.fixture(scope="module")
def params():
    return tiny.weights(tiny.LANGUAGE_MODEL, LAYOUT)


@pytest.fixture(scope="module")
def tied_params():
    return tiny.weights(variant(tied_embeddings=True), LAYOUT)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_those_of_the_numpy_decoder(tied, params, tied_params):
    model, chosen = variant(tied_embeddings=tied), tied_params if tied else params
    expected = numpy_decoder.logits(jax.device_get(chosen), model.config, TOKENS)
    actual = logits_of(model, chosen, TOKENS)[..., : tiny.CONFIG.vocabulary_size]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_scalars_equal_those_of_the_numpy_decoder():
    params = tiny.weights(tiny.SCALAR_MODEL, LAYOUT)
    host = jax.device_get(params)
    expected = numpy_decoder.hidden_states(host, tiny.CONFIG, TOKENS) @ host["head"]["weight"]
    np.testing.assert_allclose(scalars_of(params, TOKENS), expected, atol=1e-4)


def test_what_follows_a_position_does_not_change_it(params):
    other = TOKENS.copy()
    other[:, 7:] = 49 - other[:, 7:]
    before, after = (logits_of(tiny.LANGUAGE_MODEL, params, tokens) for tokens in (TOKENS, other))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert not np.allclose(before[:, 7:], after[:, 7:])


def test_padding_to_another_length_does_not_change_real_positions(params):
    padded = np.pad(TOKENS, ((0, 0), (0, 13)))
    short, long = (logits_of(tiny.LANGUAGE_MODEL, params, tokens) for tokens in (TOKENS, padded))
    np.testing.assert_allclose(long[:, : TOKENS.shape[1]], short, atol=1e-5)


def test_padded_vocabulary_has_no_probability(params):
    logits = np.asarray(logits_of(tiny.LANGUAGE_MODEL, params, TOKENS))
    assert logits.shape[-1] == tiny.CONFIG.padded_vocabulary_size > tiny.CONFIG.vocabulary_size
    assert (logits[..., tiny.CONFIG.vocabulary_size :] == PADDING_LOGIT).all()
    assert (np.asarray(jax.nn.softmax(logits))[..., tiny.CONFIG.vocabulary_size :] == 0).all()


@pytest.mark.parametrize("tied", [False, True])
def test_parameter_count_equals_the_weights_that_exist(tied):
    model = variant(tied_embeddings=tied)
    assert model.config.parameter_count == sum(w.size for w in jax.tree.leaves(model.shapes))


def test_a_tied_head_has_no_weights_of_its_own():
    assert list(variant(tied_embeddings=True).shapes) == ["backbone"]
    assert sorted(variant(tied_embeddings=False).shapes) == ["backbone", "head"]


def test_a_tied_embedding_learns_from_both_its_uses(tied_params):
    model = variant(tied_embeddings=True)
    asked = np.setdiff1d(np.arange(tiny.CONFIG.vocabulary_size), TOKENS)[0]

    def loss(params):
        return jnp.sum(logits_of(model, params, TOKENS)[..., asked])

    gradient = np.abs(jax.jit(jax.grad(loss))(tied_params)["backbone"]["embedding"]).max(axis=1)
    reached = np.flatnonzero(gradient)
    np.testing.assert_array_equal(reached, np.union1d(TOKENS, [asked]))


def test_bfloat16_compute_stays_close_to_float32(params):
    narrow, wide = (
        np.asarray(logits_of(variant(compute_dtype=dtype), params, TOKENS))[
            ..., : tiny.CONFIG.vocabulary_size
        ]
        for dtype in ("bfloat16", "float32")
    )
    assert narrow.dtype == np.float32
    # 8 bits of mantissa are 0.4 % per operation; a few layers add up to 1 or 2 %.
    relative = np.linalg.norm(narrow - wide) / np.linalg.norm(wide)
    assert 1e-4 < relative < 0.03


@pytest.mark.slow
def test_rematerialisation_changes_neither_values_nor_gradients(params):
    def value_and_gradient(remat):
        model = variant(remat=remat)

        def loss(params):
            module = model.bind(params)
            log_probs = jax.nn.log_softmax(module.logits(hidden_of(module, TOKENS)))
            return -jnp.mean(jnp.take_along_axis(log_probs, jnp.asarray(TOKENS)[..., None], axis=-1))

        return jax.jit(jax.value_and_grad(loss))(params)

    (kept, kept_gradient), (again, again_gradient) = value_and_gradient(False), value_and_gradient(True)
    assert kept == again
    for left, right in zip(jax.tree.leaves(kept_gradient), jax.tree.leaves(again_gradient), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)


def test_a_fresh_value_head_predicts_zero():
    fresh = new_weights(tiny.SCALAR_MODEL, LAYOUT, 0, 0)
    assert (np.asarray(scalars_of(fresh, TOKENS)) == 0).all()


@pytest.mark.parametrize("model", [tiny.LANGUAGE_MODEL, tiny.SCALAR_MODEL], ids=["language", "scalar"])
def test_every_dimension_of_every_weight_has_a_name(model):
    shapes = jax.tree.leaves_with_path(model.shapes)
    names = jax.tree.leaves_with_path(model.names, is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert [path for path, _ in shapes] == [path for path, _ in names]
    for (path, shape), (_, named) in zip(shapes, names, strict=True):
        assert len(named) == shape.ndim, path


def test_fresh_weights_are_float32_and_differ_from_layer_to_layer():
    fresh = new_weights(tiny.LANGUAGE_MODEL, LAYOUT, 0, 0)
    assert {w.dtype for w in jax.tree.leaves(fresh)} == {np.dtype(np.float32)}
    gate = np.asarray(fresh["backbone"]["layers"]["mlp"]["gate"])
    assert gate.shape[0] == 2
    assert abs(np.corrcoef(gate[0].ravel(), gate[1].ravel())[0, 1]) < 0.2
