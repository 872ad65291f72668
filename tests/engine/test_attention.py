"""Whole sequences and one token at a time attend alike, and as the formula says."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxflow.engine.attention import keeping, one_token, whole_sequence
from jaxflow.engine.sharding import generation_layout
from jaxflow.models.layers import AttentionRule

B, T, N, K, H, S = 3, 6, 4, 2, 5, 9
GENERATOR = np.random.default_rng(0)
QUERIES = GENERATOR.normal(size=(B, T, N, H)).astype(np.float32)
KEYS, VALUES = GENERATOR.normal(size=(2, B, T, K, H)).astype(np.float32)
LAYOUT = generation_layout(tiny.ONE_DEVICE)
PLAIN = AttentionRule(scale=H**-0.5, softcap=0.0, window=0, local=False)
NEAR = AttentionRule(scale=0.3, softcap=0.7, window=3, local=True)


def by_hand(queries, keys, values, rule=PLAIN):
    mixed = np.zeros(queries.shape)
    for b, t, n in np.ndindex(queries.shape[:3]):
        shared = n // (queries.shape[2] // keys.shape[2])
        first = max(0, t + 1 - rule.window) if rule.local else 0
        scores = keys[b, first : t + 1, shared].astype(np.float64) @ queries[b, t, n] * rule.scale
        scores = rule.softcap * np.tanh(scores / rule.softcap) if rule.softcap > 0 else scores
        weights = np.exp(scores - scores.max())
        mixed[b, t, n] = weights / weights.sum() @ values[b, first : t + 1, shared]
    return mixed


def test_whole_sequences_attend_causally_with_grouped_heads():
    mixed, carry = whole_sequence("cpu")(QUERIES, KEYS, VALUES, PLAIN, "carry")
    np.testing.assert_allclose(mixed, by_hand(QUERIES, KEYS, VALUES), atol=1e-5)
    assert carry == "carry"


@pytest.mark.parametrize("heads", [K, 2 * K])
def test_one_head_per_group_and_several_are_alike(heads):
    mixed, _ = whole_sequence("cpu")(QUERIES[:, :, :heads], KEYS, VALUES, PLAIN, None)
    np.testing.assert_allclose(mixed, by_hand(QUERIES[:, :, :heads], KEYS, VALUES), atol=1e-5)


def test_scores_of_thousands_neither_overflow_nor_blur():
    mixed, _ = whole_sequence("cpu")(300 * QUERIES, 300 * KEYS, VALUES, PLAIN, None)
    np.testing.assert_allclose(mixed, by_hand(300 * QUERIES, 300 * KEYS, VALUES), atol=1e-4)


def test_what_a_cache_keeps_of_whole_sequences_are_their_keys_and_values():
    mixed, (keys, values) = keeping("cpu")(QUERIES, KEYS, VALUES, PLAIN, None)
    np.testing.assert_allclose(mixed, by_hand(QUERIES, KEYS, VALUES), atol=1e-5)
    np.testing.assert_array_equal(keys, KEYS.swapaxes(1, 2))
    np.testing.assert_array_equal(values, VALUES.swapaxes(1, 2))


@pytest.mark.parametrize("local", [True, jnp.bool_(True)], ids=["static", "traced"])
def test_a_local_layer_sees_its_window_through_the_soft_cap(local):
    rule = dataclasses.replace(NEAR, local=local)
    mixed, _ = whole_sequence("cpu")(QUERIES, KEYS, VALUES, rule, None)
    np.testing.assert_allclose(mixed, by_hand(QUERIES, KEYS, VALUES, NEAR), atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("rule", [PLAIN, NEAR], ids=["plain", "near"])
def test_one_token_per_row_sees_its_own_past_and_nothing_behind_it(rule, platform):
    positions = np.array([0, 3, 5])
    poisoned = [np.full((B, K, S, H), 1e3, np.float32) for _ in range(2)]
    for b, position in enumerate(positions):
        poisoned[0][b, :, :position] = KEYS[b, :position].swapaxes(0, 1)
        poisoned[1][b, :, :position] = VALUES[b, :position].swapaxes(0, 1)
    rows = np.arange(B)
    new = [x[rows, positions][:, None] for x in (QUERIES, KEYS, VALUES)]
    mixed, (keys, _) = one_token(platform, jnp.asarray(positions), LAYOUT)(
        *new, rule, tuple(map(jnp.asarray, poisoned))
    )
    np.testing.assert_allclose(mixed[:, 0], by_hand(QUERIES, KEYS, VALUES, rule)[rows, positions], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(keys)[rows, :, positions], KEYS[rows, positions])
