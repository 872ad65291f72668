"""Importance weights: by hand, by level, within bounds, and on what they leave alone."""

import jax
import numpy as np
import pytest
import reference

from jaxflow.algorithms.importance import (
    BOUNDS,
    LEVELS,
    accepted,
    bounded_weights,
    importance_ratio,
    off_policy_sequences,
)
from jaxflow.types import UserError


def ratio_oracle(old, sampler, mask, level):
    ratios = np.ones(mask.shape)
    for b, row in enumerate(mask):
        tokens = reference.tokens_of(row)
        logs = [float(old[b, t] - sampler[b, t]) for t in tokens]
        for t, log in zip(tokens, logs, strict=True):
            exponent = {"token": log, "sequence": sum(logs), "geometric": reference.mean(logs)}[level]
            ratios[b, t] = np.exp(min(max(exponent, -20.0), 20.0))
    return ratios


@pytest.mark.parametrize("level", LEVELS)
def test_ratios_equal_the_oracle_and_garbage_off_the_mask_stays_there(level, draw, mask):
    old = np.where(mask, draw(*mask.shape) - 2, np.nan).astype(np.float32)
    sampler = np.where(mask, old + draw(*mask.shape, scale=0.5), np.nan).astype(np.float32)
    ratios = jax.jit(importance_ratio, static_argnames="level")(old, sampler, mask, level=level)
    np.testing.assert_allclose(ratios, ratio_oracle(old, sampler, mask, level), rtol=1e-5)
    same = importance_ratio(old, old, mask, level)
    np.testing.assert_array_equal(same, np.ones(mask.shape))
    far = importance_ratio(np.where(mask, 0, old), np.where(mask, -500, old), mask, level)
    np.testing.assert_allclose(np.asarray(far)[mask], np.exp(20), rtol=1e-5)


def test_bounds_by_hand():
    ratios = np.array([[0.1, 0.5, 1.0, 2.0, 5.0]], np.float32)
    np.testing.assert_allclose(bounded_weights(ratios, "truncate", 0.5, 2.0), [[0.1, 0.5, 1.0, 2.0, 2.0]])
    np.testing.assert_allclose(bounded_weights(ratios, "mask", 0.5, 2.0), [[0.0, 0.5, 1.0, 2.0, 0.0]])
    np.testing.assert_array_equal(accepted(ratios, 0.5, 2.0), [[False, True, True, True, False]])


def test_a_sequence_is_rejected_whole():
    old = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    sampler = np.array([[0.0, -1.0, 0.0], [0.0, -0.1, 0.0]], np.float32)
    mask = np.array([[True, True, True], [True, True, False]])
    kept = accepted(importance_ratio(old, sampler, mask, "sequence"), 0.5, 2.0)
    np.testing.assert_array_equal(np.asarray(kept) & mask, [[False] * 3, [True, True, False]])


def test_expected_token_weights_of_on_policy_samples_are_one():
    """E_μ[π_old / μ] = 1: the correction changes the measure, not the size of what is measured."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 5))
    mu, old = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn = generator.choice(5, size=200_000, p=mu)
    logs = [np.log(p)[drawn][None].astype(np.float32) for p in (old, mu)]
    ratios = np.asarray(importance_ratio(*logs, np.ones((1, len(drawn)), bool), "token"))
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / np.sqrt(len(drawn))


def test_sequences_are_dropped_for_drifting_away_from_what_was_bad():
    old = np.zeros((4, 2), np.float32)
    now = np.array([[-1.0, -1.0], [-1.0, -1.0], [-0.1, -0.1], [-9.0, -9.0]], np.float32)
    advantages = np.array([[-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]], np.float32)
    mask = np.array([[True, True], [True, True], [True, True], [False, False]])
    dropped = off_policy_sequences(now, old, advantages, mask, 0.5)
    np.testing.assert_array_equal(dropped, [True, False, False, False])


def test_unknown_names_are_refused():
    ones = np.ones((1, 1), np.float32)
    with pytest.raises(UserError, match=", ".join(LEVELS)):
        importance_ratio(ones, ones, ones > 0, "word")
    with pytest.raises(UserError, match=", ".join(BOUNDS)):
        bounded_weights(ones, "clip", 0.5, 2.0)
