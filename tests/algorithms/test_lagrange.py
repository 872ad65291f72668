"""The multiplier on costs: by hand, bounded, resumable; and the KL's weight, which it does not touch."""

import math

import numpy as np
import pytest
import reference

from jaxflow.algorithms.advantages import gae
from jaxflow.algorithms.lagrange import Multiplier, MultiplierRule, constrained_advantages

RULE = MultiplierRule(learning_rate=0.1, maximum=5.0, window_episodes=4, threshold=0.5)


def test_one_step_by_hand():
    # ln λ ← ln 2 + 0.1·2·(1 − 0.5)
    moved = RULE(Multiplier(2.0, ()), [0.0, 2.0])
    assert moved.value == pytest.approx(2.0 * math.exp(0.1), rel=1e-12)
    assert moved.window == (0.0, 2.0)


def test_only_the_last_episodes_count():
    moved = RULE(Multiplier(1.0, (100.0, 1.0, 1.0)), [1.0, 1.0])
    assert moved.window == (1.0, 1.0, 1.0, 1.0)
    assert moved.value == pytest.approx(math.exp(0.05), rel=1e-12)
    assert RULE(Multiplier(1.0, ()), [9.0] * 3 + [0.5] * 4).value == 1.0


def test_it_rises_above_the_threshold_falls_below_and_stays_within_its_bounds():
    high = low = Multiplier(1.0, ())
    for _ in range(200):
        high, low = RULE(high, [10.0] * 4), RULE(low, [-10.0] * 4)
    assert high.value == pytest.approx(5.0) and 0 < low.value < 1e-2
    # From the least there is, costs bring it back.
    lowest = Multiplier(math.exp(-50.0), ())
    assert RULE(lowest, [-1e9] * 4).value == pytest.approx(math.exp(-50.0))
    assert RULE(low, [1e9] * 4).value == pytest.approx(5.0)


def test_costs_that_are_no_numbers_move_nothing():
    start = Multiplier(2.0, (1.0,))
    assert RULE(Multiplier(2.0, ()), [math.nan, math.inf]) == Multiplier(2.0, ())
    assert RULE(start, [math.nan, 3.0]).window == (1.0, 3.0)


def test_steps_from_saved_state_are_the_steps_of_one_run():
    costs = np.random.default_rng(0).normal(size=(6, 3)).tolist()
    through = Multiplier(1.0, ())
    for step in costs:
        through = RULE(through, step)
    half = Multiplier(1.0, ())
    for step in costs[:3]:
        half = RULE(half, step)
    resumed = Multiplier(half.value, tuple(half.window))
    for step in costs[3:]:
        resumed = RULE(resumed, step)
    assert resumed == through


def test_advantages_are_weighed_against_each_other_by_hand():
    rewards, costs = np.array([[2.0, 1.0]], np.float32), np.array([[1.0, -1.0]], np.float32)
    np.testing.assert_allclose(constrained_advantages(rewards, costs, 3.0), [[-0.25, 1.0]])
    np.testing.assert_allclose(constrained_advantages(rewards, costs, 0.0), rewards)


@pytest.mark.parametrize("multiplier", [0.01, 1.0, 5.0])
def test_the_kl_s_weight_is_beta_at_every_multiplier(multiplier, draw, mask):
    """−β·KL in the rewards and +β·KL in the costs: (β + λβ) / (1 + λ) = β."""
    kl, zeros, nothing = draw(*mask.shape), np.zeros(mask.shape, np.float32), np.zeros(len(mask))
    beta = 0.3

    def stream(sign):
        shaped = reference.shape_rewards(nothing, kl, mask, sign * beta).astype(np.float32)
        return gae(shaped, zeros, mask, 1.0, 0.95)[0]

    combined = constrained_advantages(stream(1.0), stream(-1.0), multiplier)
    expected, _ = reference.gae(-beta * np.where(mask, kl, 0), zeros, mask, 1.0, 0.95)
    np.testing.assert_allclose(combined, expected, rtol=1e-4, atol=1e-5)
