"""Tokens are drawn from the distribution asked for, and their log-probs are told truly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxflow.engine.sampling import Sampling, keep_top_k, keep_top_p, sample, sequence_keys
from jaxflow.models.heads import PADDING_LOGIT

V = 12
PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_response_tokens=4, end_ids=(1,), pad_id=0)
LOGITS = np.random.default_rng(0).normal(0, 2, (5, V)).astype(np.float32)


def kept_by_sorting(logits, k, p):
    """The sets of top-k, then top-p of what it left, from a sort; ties with the last one kept stay."""
    kept = np.zeros(logits.shape, bool)
    for row, x in enumerate(logits.astype(np.float64)):
        left = x >= np.sort(x)[::-1][k - 1] if k > 0 else np.ones(len(x), bool)
        probabilities = np.where(left, np.exp(x - x.max()), 0.0)
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        needed = 1 + np.searchsorted(np.cumsum(probabilities[order]), p * (1 - 1e-6))
        last = probabilities[order[min(needed, len(order)) - 1]]
        kept[row] = left & (probabilities >= last) if p < 1 else left
    return kept


def draw(logits, sampling, draws, seed=0):
    """Draw once from each row of `logits` under `draws` sequence ids: tokens [draws, rows]."""
    rows = len(logits)
    keys = sequence_keys(seed, 0, 0, np.arange(draws * rows))
    tiled = jnp.tile(jnp.asarray(logits), (draws, 1))
    tokens, log_probs, behaviour = jax.jit(sample, static_argnums=3)(
        tiled, keys, jnp.zeros(draws * rows, jnp.int32), sampling
    )
    return (np.asarray(x).reshape(draws, rows) for x in (tokens, log_probs, behaviour))


@pytest.mark.parametrize("k", [1, 2, 7, V])
def test_top_k_keeps_what_a_sort_keeps(k):
    np.testing.assert_array_equal(np.isfinite(keep_top_k(LOGITS, k)), kept_by_sorting(LOGITS, k, 1.0))


@pytest.mark.parametrize("p", [1e-30, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.999999])
def test_top_p_keeps_what_a_sort_keeps(p):
    np.testing.assert_array_equal(np.isfinite(keep_top_p(LOGITS, p)), kept_by_sorting(LOGITS, 0, p))


def test_ties_with_the_last_one_kept_stay():
    logits = np.log(np.array([[0.4, 0.2, 0.2, 0.2]], np.float32))
    np.testing.assert_array_equal(np.isfinite(keep_top_k(logits, 2)), [[True] * 4])
    np.testing.assert_array_equal(np.isfinite(keep_top_p(logits, 0.5)), [[True] * 4])
    np.testing.assert_array_equal(np.isfinite(keep_top_p(logits, 0.3)), [[True, False, False, False]])


def test_top_p_of_equal_logits_keeps_all_and_of_certainty_one():
    assert np.isfinite(keep_top_p(jnp.zeros((1, V)), 0.01)).all()
    certain = jnp.full((1, V), -1e4).at[0, 3].set(0.0)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(keep_top_p(certain, 0.999))), [3])


def test_kept_values_pass_unchanged():
    for cut in (keep_top_k(LOGITS, 4), keep_top_p(LOGITS, 0.8)):
        cut = np.asarray(cut)
        np.testing.assert_array_equal(cut[np.isfinite(cut)], LOGITS[np.isfinite(cut)])


@pytest.mark.parametrize(
    ("k", "p", "temperature"), [(0, 1.0, 1.0), (0, 1.0, 0.5), (5, 1.0, 2.0), (0, 0.7, 1.0), (6, 0.8, 1.5)]
)
def test_frequencies_match_the_probabilities(k, p, temperature):
    """Pearson's χ² of 8000 draws: its mean is the degrees of freedom, its deviation √(2·df)."""
    draws = 8000
    sampling = dataclasses.replace(PLAIN, temperature=temperature, top_k=k, top_p=p)
    tokens, log_probs, behaviour = draw(LOGITS, sampling, draws)
    tempered = LOGITS.astype(np.float64) / temperature
    kept = kept_by_sorting(tempered, k, p)
    chances = np.where(kept, np.exp(tempered), 0.0)
    chances /= chances.sum(axis=1, keepdims=True)
    counts = np.stack([np.bincount(column, minlength=V) for column in tokens.T])
    assert (counts[~kept] == 0).all()
    expected = draws * chances
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = kept.sum() - len(LOGITS)
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)
    rows = np.broadcast_to(np.arange(len(LOGITS)), tokens.shape)
    np.testing.assert_allclose(behaviour, np.log(chances[rows, tokens]), atol=1e-4)
    whole = np.exp(tempered) / np.exp(tempered).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(log_probs, np.log(whole[rows, tokens]), atol=1e-4)


def test_behaviour_probabilities_sum_to_one_over_the_kept_tokens():
    sampling = dataclasses.replace(PLAIN, top_k=4, top_p=0.95)
    tokens, log_probs, behaviour = draw(LOGITS[:1], sampling, 2000)
    told = dict(zip(tokens.ravel().tolist(), behaviour.ravel().tolist(), strict=True))
    assert set(told) == set(np.flatnonzero(kept_by_sorting(LOGITS[:1], 4, 0.95)))
    np.testing.assert_allclose(sum(np.exp(list(told.values()))), 1.0, atol=1e-5)
    assert (behaviour > log_probs).all()


def test_without_truncation_both_log_probs_are_the_same():
    _, log_probs, behaviour = draw(LOGITS, PLAIN, 3)
    np.testing.assert_array_equal(log_probs, behaviour)


def test_temperature_zero_takes_the_largest_and_tells_the_untempered_log_prob():
    tokens, log_probs, _ = draw(LOGITS, dataclasses.replace(PLAIN, temperature=0.0), 2)
    np.testing.assert_array_equal(tokens, [LOGITS.argmax(axis=1)] * 2)
    expected = LOGITS.max(axis=1) - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(log_probs, [expected] * 2, atol=1e-5)


def test_top_k_beyond_the_vocabulary_keeps_all():
    tokens, log_probs, _ = draw(LOGITS, dataclasses.replace(PLAIN, top_k=10 * V), 50)
    plain_tokens, plain_log_probs, _ = draw(LOGITS, PLAIN, 50)
    np.testing.assert_array_equal(tokens, plain_tokens)
    np.testing.assert_array_equal(log_probs, plain_log_probs)


def test_padded_vocabulary_is_never_drawn_however_hot():
    logits = np.concatenate([LOGITS, np.full((len(LOGITS), 4), PADDING_LOGIT, np.float32)], axis=1)
    for changes in ({}, {"top_k": V + 2}, {"top_p": 0.9999999}):
        tokens, log_probs, behaviour = draw(
            logits, dataclasses.replace(PLAIN, temperature=100.0, **changes), 200
        )
        assert set(tokens.ravel().tolist()) == set(range(V))
        assert np.isfinite(log_probs).all() and np.isfinite(behaviour).all()


def test_a_token_s_randomness_is_addressed_by_seed_step_purpose_sequence_and_position():
    def bits(seed, step, purpose, sequence):
        return tuple(
            np.asarray(jax.random.key_data(sequence_keys(seed, step, purpose, np.array([sequence])))).ravel()
        )

    addresses = [(s, t, p, i) for s in (0, 1) for t in (0, 1) for p in (0, 1) for i in (0, 1)]
    assert len({bits(*address) for address in addresses}) == len(addresses)
    keys = sequence_keys(0, 0, 0, np.zeros(200, np.int32))
    tokens, *_ = sample(jnp.zeros((200, V)), keys, jnp.arange(200), PLAIN)
    again, *_ = sample(jnp.zeros((200, V)), keys, jnp.zeros(200, jnp.int32), PLAIN)
    assert len(set(np.asarray(tokens).tolist())) == V and len(set(np.asarray(again).tolist())) == 1


def test_a_row_s_draw_does_not_depend_on_its_neighbours():
    keys, positions = sequence_keys(3, 1, 0, np.arange(5)), jnp.arange(5)
    together, *_ = sample(jnp.asarray(LOGITS), keys, positions, PLAIN)
    order = np.array([4, 2, 0, 3, 1])
    shuffled, *_ = sample(jnp.asarray(LOGITS)[order], keys[order], positions[order], PLAIN)
    np.testing.assert_array_equal(np.asarray(together)[order], shuffled)
