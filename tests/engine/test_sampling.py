"""Tokens are drawn from the distribution asked for, and their log-probs are told truly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxflow.engine.sampling import (
    Sampling,
    StopTable,
    ends,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    sample,
    sequence_keys,
)
from jaxflow.models.heads import PADDING_LOGIT

V = 12
PLAIN = Sampling(
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    min_response_tokens=0,
    max_response_tokens=4,
    end_ids=(1,),
    pad_id=0,
)
LOGITS = np.random.default_rng(0).normal(0, 2, (5, V)).astype(np.float32)


def kept_by_sorting(logits, k, p, min_p=0.0):
    """The sets of top-k, then top-p, then min-p of what was left, from a sort; ties with the last one kept stay."""
    kept = np.zeros(logits.shape, bool)
    for row, x in enumerate(logits.astype(np.float64)):
        left = x >= np.sort(x)[::-1][k - 1] if k > 0 else np.ones(len(x), bool)
        probabilities = np.where(left, np.exp(x - x.max()), 0.0)
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        needed = 1 + np.searchsorted(np.cumsum(probabilities[order]), p * (1 - 1e-6))
        last = probabilities[order[min(needed, len(order)) - 1]]
        kept[row] = left & (probabilities >= last) if p < 1 else left
        kept[row] &= probabilities >= min_p * probabilities.max()
    return kept


def keys_of(sequence_ids, seed=0, step=0, purpose=0):
    ids = np.asarray(sequence_ids, np.int32)
    return sequence_keys(seed, step, purpose, ids, np.full(len(ids), -1, np.int32))


def draw(logits, sampling, draws, seed=0, drawn=0):
    """Draw once from each row of `logits` under `draws` sequence ids: tokens [draws, rows]."""
    rows = len(logits)
    keys = keys_of(np.arange(draws * rows), seed)
    tiled = jnp.tile(jnp.asarray(logits), (draws, 1))
    zeros = jnp.zeros(draws * rows, jnp.int32)
    tokens, log_probs, behaviour = jax.jit(sample, static_argnums=4)(
        tiled, keys, zeros, zeros + drawn, sampling
    )
    return (np.asarray(x).reshape(draws, rows) for x in (tokens, log_probs, behaviour))


@pytest.mark.parametrize("k", [1, 2, 7, V])
def test_top_k_keeps_what_a_sort_keeps(k):
    np.testing.assert_array_equal(np.isfinite(keep_top_k(LOGITS, k)), kept_by_sorting(LOGITS, k, 1.0))


@pytest.mark.parametrize("p", [1e-30, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.999999])
def test_top_p_keeps_what_a_sort_keeps(p):
    np.testing.assert_array_equal(np.isfinite(keep_top_p(LOGITS, p)), kept_by_sorting(LOGITS, 0, p))


@pytest.mark.parametrize("p", [1e-6, 0.01, 0.2, 0.9, 0.999])
def test_min_p_keeps_what_reaches_its_share_of_the_likeliest(p):
    np.testing.assert_array_equal(np.isfinite(keep_min_p(LOGITS, p)), kept_by_sorting(LOGITS, 0, 1.0, p))


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
    ("k", "p", "min_p", "temperature"),
    [
        (0, 1.0, 0.0, 1.0),
        (0, 1.0, 0.0, 0.5),
        (5, 1.0, 0.0, 2.0),
        (0, 0.7, 0.0, 1.0),
        (0, 1.0, 0.1, 1.0),
        (6, 0.8, 0.3, 1.5),
    ],
)
def test_frequencies_match_the_probabilities(k, p, min_p, temperature):
    """Pearson's χ² of 8000 draws: its mean is the degrees of freedom, its deviation √(2·df)."""
    draws = 8000
    sampling = dataclasses.replace(PLAIN, temperature=temperature, top_k=k, top_p=p, min_p=min_p)
    tokens, log_probs, behaviour = draw(LOGITS, sampling, draws)
    tempered = LOGITS.astype(np.float64) / temperature
    kept = kept_by_sorting(tempered, k, p, min_p)
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


def test_a_vocabulary_that_is_drawn_from_in_blocks_has_the_same_frequencies():
    """192 tokens make 64 blocks of 3; whole blocks are cut away, and others hold one token that is left."""
    logits = np.random.default_rng(1).normal(0, 2, (2, 192)).astype(np.float32)
    draws, sampling = 20000, dataclasses.replace(PLAIN, top_k=60)
    tokens, _, behaviour = draw(logits, sampling, draws)
    kept = kept_by_sorting(logits, 60, 1.0)
    chances = np.where(kept, np.exp(logits.astype(np.float64)), 0.0)
    chances /= chances.sum(axis=1, keepdims=True)
    counts = np.stack([np.bincount(column, minlength=192) for column in tokens.T])
    assert (counts[~kept] == 0).all()
    statistic = ((counts - draws * chances)[kept] ** 2 / (draws * chances)[kept]).sum()
    degrees = kept.sum() - len(logits)
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)
    rows = np.broadcast_to(np.arange(2), tokens.shape)
    np.testing.assert_allclose(behaviour, np.log(chances[rows, tokens]), atol=1e-4)
    greedy, *_ = draw(logits, dataclasses.replace(sampling, temperature=0.0), 1)
    np.testing.assert_array_equal(greedy[0], logits.argmax(axis=1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_before_its_least_length_a_row_draws_from_what_is_no_end_token(temperature):
    """The end tokens are the likeliest; the log-probs are those of the distribution without them, and with them."""
    ending = tuple(np.unique(LOGITS.argmax(axis=1)).tolist())
    sampling = dataclasses.replace(
        PLAIN, temperature=temperature, end_ids=ending, min_response_tokens=3, top_p=0.9
    )
    without = LOGITS.astype(np.float64)
    without[:, ending] = -np.inf
    kept = kept_by_sorting(without, 0, 0.9)
    chances = np.where(kept, np.exp(without), 0.0) / np.where(kept, np.exp(without), 0.0).sum(axis=1)[:, None]
    rows = np.arange(len(LOGITS))
    whole = np.log(np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum(axis=1)[:, None])
    for drawn in (0, 2):
        tokens, log_probs, behaviour = draw(LOGITS, sampling, 100, drawn=drawn)
        assert not set(tokens.ravel().tolist()) & set(ending)
        np.testing.assert_allclose(behaviour, np.log(chances[rows, tokens]), atol=1e-4)
        np.testing.assert_allclose(log_probs, whole[rows, tokens], atol=1e-4)
    tokens, *_ = draw(LOGITS, sampling, 100, drawn=3)
    assert set(tokens.ravel().tolist()) & set(ending)


def test_a_response_ends_with_an_end_token_or_a_completed_stop_string_once_it_is_long_enough():
    # Two states behind the start's; token 5 leads on, then token 6 completes and leads back.
    table = np.ones((3, V), np.int16)
    table[:, 5], table[2, 6] = 2, ~1
    sampling = dataclasses.replace(PLAIN, end_ids=(1, 3), min_response_tokens=2)
    tokens = jnp.array([1, 3, 6, 6, 4, 6])
    states = jnp.array([1, 1, 2, 1, 2, 2])
    drawn = jnp.array([2, 1, 2, 2, 2, 1])
    over, after = ends(tokens, drawn, states, sampling, StopTable(jnp.asarray(table)))
    np.testing.assert_array_equal(over, [True, False, True, False, False, False])
    np.testing.assert_array_equal(after, [1, 1, 1, 1, 1, 1])
    over, after = ends(tokens, drawn, states, sampling, None)
    np.testing.assert_array_equal(over, [True, False, False, False, False, False])
    np.testing.assert_array_equal(after, states)
    over, _ = ends(tokens, drawn, states, dataclasses.replace(sampling, end_ids=()), None)
    assert not over.any()


def test_a_sequence_with_a_seed_of_its_own_draws_from_it_alone_wherever_it_is():
    def data(seed, step, purpose, sequence_ids, own):
        keys = sequence_keys(seed, step, purpose, np.asarray(sequence_ids), np.asarray(own, np.int32))
        return np.asarray(jax.random.key_data(keys)).tolist()

    first, second = data(0, 0, 0, [0, 1], [7, -1]), data(3, 5, 0, [4, 1], [7, -1])
    assert first[0] == second[0] and first[1] != second[1]
    assert first[1] == data(0, 0, 0, [0, 1], [-1, -1])[1]
    others = [data(0, 0, 1, [0], [7]), data(0, 0, 0, [0], [8]), data(7, 0, 0, [0], [-1])]
    assert all(first[0] != other[0] for other in others)


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
        return tuple(np.asarray(jax.random.key_data(keys_of([sequence], seed, step, purpose))).ravel())

    addresses = [(s, t, p, i) for s in (0, 1) for t in (0, 1) for p in (0, 1) for i in (0, 1)]
    assert len({bits(*address) for address in addresses}) == len(addresses)
    keys, zeros = keys_of(np.zeros(200)), jnp.zeros(200, jnp.int32)
    tokens, *_ = sample(jnp.zeros((200, V)), keys, jnp.arange(200), zeros, PLAIN)
    again, *_ = sample(jnp.zeros((200, V)), keys, zeros, zeros, PLAIN)
    assert len(set(np.asarray(tokens).tolist())) == V and len(set(np.asarray(again).tolist())) == 1


def test_a_row_s_draw_does_not_depend_on_its_neighbours():
    keys, positions = keys_of(np.arange(5), 3, 1), jnp.arange(5)
    together, *_ = sample(jnp.asarray(LOGITS), keys, positions, positions, PLAIN)
    order = np.array([4, 2, 0, 3, 1])
    shuffled, *_ = sample(jnp.asarray(LOGITS)[order], keys[order], positions[order], positions, PLAIN)
    np.testing.assert_array_equal(np.asarray(together)[order], shuffled)
