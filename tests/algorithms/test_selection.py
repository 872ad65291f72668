"""Which responses count: uninformative groups, refills of them, PF-PPO's weights."""

import numpy as np
import pytest

from jaxflow.algorithms.selection import REWEIGHTINGS, refilled_rows, score_weights, uninformative_groups
from jaxflow.types import UserError

ALL = np.ones(5, bool)


def test_a_group_is_uninformative_where_no_two_rewards_differ():
    rewards = np.array([1, 1, 0, 1, 0.5, 0.5, 0, 0], np.float32)
    np.testing.assert_array_equal(uninformative_groups(rewards, 2), [True, False, True, True])
    np.testing.assert_array_equal(uninformative_groups(rewards, 4), [False, False])
    assert uninformative_groups(rewards, 1).all()


@pytest.mark.parametrize(
    ("held", "more", "expected"),
    [
        # The first two wanting groups take the first two informative ones, in order.
        ([1, 0, 1, 1], [1, 0, 0, 1], [5, 1, 6, 3]),
        ([1, 0, 0, 0], [0, 0, 0, 0], [4, 1, 2, 3]),
        ([1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 2, 3]),
        ([0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2, 3]),
    ],
)
def test_refills_replace_wanting_groups_in_order_and_nothing_else(held, more, expected):
    for samples in (1, 3):
        source = refilled_rows(np.array(held, bool), np.array(more, bool), samples)
        groups = source.reshape(-1, samples)
        np.testing.assert_array_equal(groups[:, 0] // samples, expected)
        np.testing.assert_array_equal(groups - groups[:, :1], np.tile(np.arange(samples), (4, 1)))
        assert len(set(source.tolist())) == len(source)


def test_weights_by_hand():
    scores = np.array([1.0, -2.0, 0.0, 2.0, 1.0], np.float32)
    squares = np.array([1, 4, 0, 4, 1]) / 10 * 5
    np.testing.assert_allclose(score_weights(scores, ALL, "pow", 2.0), squares, rtol=1e-6)
    extremes = np.array([0, 1, 0, 1, 0]) / 2 * 5
    np.testing.assert_allclose(score_weights(scores, ALL, "max_min", 2.0), extremes)
    one_best = np.array([0.1, 0.1, 0.1, 0.4, 0.1]) / 0.8 * 5
    np.testing.assert_allclose(score_weights(scores, ALL, "max_random", 2.0), one_best, rtol=1e-6)


@pytest.mark.parametrize("method", REWEIGHTINGS)
def test_weights_add_up_to_the_responses_that_there_are(method):
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores, present = generator.normal(size=5).astype(np.float32), generator.random(5) < 0.7
        scores[~present] = np.nan
        weights = np.asarray(score_weights(scores, present, method, 2.0))
        np.testing.assert_allclose(weights.sum(), present.sum(), rtol=1e-5)
        assert not weights[~present].any()
    zeros = np.zeros(5, np.float32)
    np.testing.assert_allclose(score_weights(zeros, ALL, method, 2.0), 1.0)
    huge = np.array([1e30, 1e30, 0, 0, -1e30], np.float32)
    assert np.all(np.isfinite(score_weights(huge, ALL, method, 2.0)))


def test_the_weights_are_the_expected_draws_of_resampling():
    """PF-PPO resamples with replacement; over many draws each response comes up as often as its weight says."""
    scores = np.array([0.5, -1.0, 2.0, 0.0, 1.0], np.float32)
    weights = np.asarray(score_weights(scores, ALL, "pow", 2.0), np.float64)
    draws = np.random.default_rng(1).multinomial(5, weights / weights.sum(), size=20_000)
    np.testing.assert_allclose(draws.mean(axis=0), weights, atol=0.05)


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="pow, max_min, max_random"):
        score_weights(np.ones(5, np.float32), ALL, "best", 2.0)
