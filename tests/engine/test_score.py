"""Scores are the model's own probabilities, however rows are cut, padded and spread."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from models import numpy_decoder

from jaxflow.engine import score
from jaxflow.engine.score import Scorer, token_log_probs
from jaxflow.engine.sharding import training_layout

LAYOUT = training_layout(tiny.ONE_DEVICE)
TOLERANCE = 1e-4  # nats; log-probs here reach −30, so this is a few units in float32's last place
BATCH = tiny.experience(rows=7, length=24)


@pytest.fixture(scope="module")
def params():
    return tiny.weights(tiny.LANGUAGE_MODEL, LAYOUT)


@pytest.fixture(scope="module")
def scored(params):
    return log_probs(params)


def log_probs(params, layout=LAYOUT, tokens_per_device=64, temperature=0.7, batch=BATCH):
    scorer = Scorer(tiny.LANGUAGE_MODEL, layout, tokens_per_device, temperature)
    return scorer.log_probs(params, batch.tokens, batch.lengths, batch.response_mask)


def test_log_probs_and_entropy_equal_the_numpy_decoder_s(params, scored):
    logits = numpy_decoder.logits(jax.device_get(params), tiny.CONFIG, BATCH.tokens) / 0.7
    distribution = numpy_decoder.log_softmax(logits)
    chosen = np.take_along_axis(distribution[:, :-1], BATCH.tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -(np.exp(distribution) * distribution).sum(axis=-1)[:, :-1]
    mask = BATCH.response_mask
    for actual, expected in ((scored.log_probs, chosen), (scored.entropy, entropy)):
        np.testing.assert_allclose(actual, np.pad(expected, ((0, 0), (1, 0))) * mask, atol=TOLERANCE)
        assert actual.dtype == np.float32
        assert (actual[~mask] == 0).all() and (actual[mask] != 0).all()


def test_values_stand_before_the_token_they_estimate():
    params = tiny.weights(tiny.SCALAR_MODEL, LAYOUT)
    scorer = Scorer(tiny.SCALAR_MODEL, LAYOUT, 64, 1.0)
    values = scorer.values(params, BATCH.tokens, BATCH.lengths, BATCH.response_mask)
    host = jax.device_get(params)
    scalars = numpy_decoder.hidden_states(host, tiny.CONFIG, BATCH.tokens) @ host["head"]["weight"]
    expected = np.pad(scalars[:, :-1], ((0, 0), (1, 0))) * BATCH.response_mask
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)


@pytest.mark.parametrize("tokens_per_device", [24, 4096])
def test_scores_do_not_depend_on_how_rows_are_cut(params, scored, tokens_per_device):
    other = log_probs(params, tokens_per_device=tokens_per_device)
    np.testing.assert_allclose(other.log_probs, scored.log_probs, atol=TOLERANCE)
    np.testing.assert_allclose(other.entropy, scored.entropy, atol=TOLERANCE)


def test_what_lies_behind_a_row_s_length_is_never_read(params, scored):
    garbage = np.random.default_rng(9).integers(0, 50, BATCH.tokens.shape)
    padding = np.arange(BATCH.tokens.shape[1]) >= BATCH.lengths[:, None]
    poisoned = dataclasses.replace(BATCH, tokens=np.where(padding, garbage, BATCH.tokens).astype(np.int32))
    tiny.assert_same_bits(log_probs(params, batch=poisoned), scored)


def test_rows_may_come_in_any_order(params, scored):
    order = np.random.default_rng(1).permutation(len(BATCH.lengths))
    shuffled = log_probs(params, batch=tiny.rows_of(BATCH, order))
    np.testing.assert_allclose(shuffled.log_probs, scored.log_probs[order], atol=TOLERANCE)


@pytest.mark.slow
def test_vocabulary_chunks_change_neither_values_nor_gradients(params, monkeypatch):
    tokens = jnp.asarray(BATCH.tokens)

    def value_and_gradient():
        def total(params):
            said = token_log_probs(tiny.LANGUAGE_MODEL, params, tokens, 0.7, LAYOUT)
            return jnp.sum(jnp.sin(said.log_probs)) + jnp.sum(jnp.cos(said.entropy))

        return jax.jit(jax.value_and_grad(total))(params)

    whole, whole_gradient = value_and_gradient()
    monkeypatch.setattr(
        score, "_LOGIT_CHUNK_ELEMENTS", 3 * tokens.shape[0] * tiny.CONFIG.padded_vocabulary_size
    )
    chunked, chunked_gradient = value_and_gradient()
    np.testing.assert_allclose(chunked, whole, rtol=1e-5)
    difference = jax.tree.map(jnp.subtract, chunked_gradient, whole_gradient)
    assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(whole_gradient)


def test_the_kl_over_the_vocabulary_is_exact_and_what_a_single_token_estimates(params, monkeypatch):
    other = tiny.weights(tiny.LANGUAGE_MODEL, LAYOUT, seed=1)
    logits = [
        numpy_decoder.logits(jax.device_get(p), tiny.CONFIG, BATCH.tokens) / 0.7 for p in (params, other)
    ]
    ours, theirs = (numpy_decoder.log_softmax(x.astype(np.float64)) for x in logits)
    expected = np.sum(np.exp(ours) * (ours - theirs), axis=-1)[:, :-1]

    @jax.jit
    def said(params, reference):
        return token_log_probs(tiny.LANGUAGE_MODEL, params, jnp.asarray(BATCH.tokens), 0.7, LAYOUT, reference)

    whole = said(params, other)
    np.testing.assert_allclose(
        whole.reference_kl, np.pad(expected, ((0, 0), (1, 0))), rtol=1e-3, atol=TOLERANCE
    )
    assert np.all(np.asarray(whole.reference_kl)[:, 1:] > 0)
    # Under π_θ the estimate k1 of a sampled token is log π_θ − log π_ref, whose mean this is.
    mean = np.sum(np.exp(ours) * ours, axis=-1) - np.sum(np.exp(ours) * theirs, axis=-1)
    np.testing.assert_allclose(expected, mean[:, :-1], rtol=1e-6)
    # The scorer measures it in the same pass, however rows are cut.
    scorer, mask = Scorer(tiny.LANGUAGE_MODEL, LAYOUT, 64, 0.7), BATCH.response_mask
    measured = scorer.log_probs(params, BATCH.tokens, BATCH.lengths, mask, other).reference_kl
    np.testing.assert_allclose(measured, np.where(mask, whole.reference_kl, 0), rtol=1e-3, atol=TOLERANCE)
    itself = said(params, params)
    np.testing.assert_allclose(itself.reference_kl, 0, atol=1e-5)
    np.testing.assert_array_equal(itself.log_probs, whole.log_probs)
    monkeypatch.setattr(
        score, "_LOGIT_CHUNK_ELEMENTS", 6 * len(BATCH.tokens) * tiny.CONFIG.padded_vocabulary_size
    )
    chunked = jax.jit(said.__wrapped__)(params, other)
    np.testing.assert_allclose(chunked.reference_kl, whole.reference_kl, rtol=1e-4, atol=1e-5)


@tiny.ON_EVERY_MESH
def test_every_mesh_scores_alike(sizes, scored):
    layout = training_layout(tiny.mesh_of(sizes))
    other = log_probs(tiny.weights(tiny.LANGUAGE_MODEL, layout), layout)
    np.testing.assert_allclose(other.log_probs, scored.log_probs, atol=TOLERANCE)
    np.testing.assert_allclose(other.entropy, scored.entropy, atol=TOLERANCE)


def test_a_row_without_response_is_all_zero(params):
    empty = dataclasses.replace(BATCH, response_mask=np.zeros_like(BATCH.response_mask))
    scored = log_probs(params, batch=empty)
    assert not scored.log_probs.any() and not scored.entropy.any()


def test_values_of_a_row_of_one_token_are_zero():
    tokens, lengths = np.full((1, 4), 3, np.int32), np.ones(1, np.int32)
    scorer = Scorer(tiny.SCALAR_MODEL, LAYOUT, 64, 1.0)
    values = scorer.values(tiny.weights(tiny.SCALAR_MODEL, LAYOUT), tokens, lengths, np.eye(1, 4, dtype=bool))
    np.testing.assert_array_equal(values, np.zeros((1, 4), np.float32))
