"""Critic-free advantages: hand-made numbers, oracles, groups anywhere in the batch and on the mesh, edges."""

import family_reference as oracle
import jax
import numpy as np
import pytest
import reference

from jaxflow.algorithms import group_advantages as estimators

# Of the eight rows of conftest's mask; row 3 is empty, and row 6 alone in its group. Groups lie apart.
GROUPS = np.array([0, 1, 0, 1, 1, 0, 2, 1], np.int32)

OF_ROWS = {
    "grpo": (lambda s, g, m: estimators.grpo(s, g, m.any(1), True), lambda *x: oracle.grpo(*x, True)),
    "dr_grpo": (lambda s, g, m: estimators.grpo(s, g, m.any(1), False), lambda *x: oracle.grpo(*x, False)),
    "rloo": (lambda s, g, m: estimators.rloo(s, g, m.any(1)), oracle.rloo),
    "opo": (lambda s, g, m: estimators.opo(s, g, m.any(1), m.sum(1)), oracle.opo),
    "gpg": (lambda s, g, m: estimators.gpg(s, g, m.any(1)), oracle.gpg),
    "passk": (
        lambda s, g, m: estimators.grpo_passk(s, g, m.any(1), True),
        lambda *x: oracle.grpo_passk(*x, True),
    ),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_group_baselines_equal_their_oracles_in_any_order_and_on_eight_devices(name, draw, mask):
    ours, theirs = OF_ROWS[name]
    scores = draw(len(mask))
    scores[3] = np.nan  # of the empty row: it has no say
    expected = theirs(scores, GROUPS, mask)
    np.testing.assert_allclose(ours(scores, GROUPS, mask), expected, rtol=2e-5, atol=1e-6)
    order = np.random.default_rng(3).permutation(len(mask))
    moved = ours(scores[order], GROUPS[order], mask[order])
    np.testing.assert_allclose(moved, expected[order], rtol=2e-5, atol=1e-6)
    rows = jax.sharding.NamedSharding(
        jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.sharding.PartitionSpec("data"),
    )
    cut = jax.jit(ours)(*jax.device_put((scores, GROUPS, mask), rows))
    np.testing.assert_allclose(cut, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_ROWS)
def test_equal_scores_have_no_advantage_whatever_their_mean_rounds_to(name):
    # Seven times a number, divided by seven, is often its neighbour in float32.
    scores = np.repeat(np.linspace(-3, 1e5, 40, dtype=np.float32), 7)
    groups, mask = np.repeat(np.arange(40, dtype=np.int32), 7), np.ones((280, 1), bool)
    assert np.any(scores != (7 * scores) / np.float32(7))
    assert not np.asarray(OF_ROWS[name][0](scores, groups, mask)).any()


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_group_of_one_and_a_batch_of_empty_responses_have_no_advantage(name, draw, mask):
    apart = np.arange(len(mask), dtype=np.int32)
    assert not np.asarray(OF_ROWS[name][0](draw(len(mask)), apart, mask)).any()
    empty = OF_ROWS[name][0](draw(len(mask)), GROUPS, np.zeros_like(mask))
    np.testing.assert_array_equal(empty, np.zeros(len(mask)))


def test_numbers_by_hand():
    # Two prompts with two answers each, one right one wrong, and both right.
    scores, groups = np.array([1.0, 0.0, 1.0, 1.0], np.float32), np.array([0, 0, 1, 1], np.int32)
    present, half = np.ones(4, bool), 0.5**0.5
    np.testing.assert_allclose(estimators.grpo(scores, groups, present, True), [half, -half, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(estimators.grpo(scores, groups, present, False), [0.5, -0.5, 0, 0])
    np.testing.assert_allclose(estimators.rloo(scores, groups, present), [1, -1, 0, 0])
    # Half of the responses teach nothing: the others count twice.
    np.testing.assert_allclose(estimators.gpg(scores, groups, present), [1, -1, 0, 0])
    np.testing.assert_allclose(estimators.grpo_passk(scores, groups, present, False), [1, 0, 0, 0])
    # The right answer is three times as long: the baseline is 3/4.
    lengths = np.array([3, 1, 1, 1])
    np.testing.assert_allclose(estimators.opo(scores, groups, present, lengths), [0.25, -0.75, 0, 0])


def test_rloo_is_the_centred_score_scaled_by_the_size_of_the_group(draw, mask):
    scores, present = draw(len(mask)), mask.any(axis=1)
    sizes = np.array([np.sum((g == GROUPS) & present) for g in GROUPS])
    scale = np.where(sizes > 1, sizes / np.maximum(sizes - 1, 1), 0)
    centred = estimators.grpo(scores, GROUPS, present, False)
    np.testing.assert_allclose(
        estimators.rloo(scores, GROUPS, present), scale * centred, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_rewards_to_go_skip_what_the_policy_did_not_write(discount, draw, mask):
    rewards = np.where(mask, draw(*mask.shape), np.nan).astype(np.float32)
    expected = oracle.returns_to_go(rewards, mask, discount)
    returns = estimators.returns_to_go(rewards, mask, discount)
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        estimators.reinforce_plus_plus(rewards, mask, discount),
        reference.whiten(expected, mask),
        rtol=1e-4,
        atol=1e-5,
    )
    greedy = draw(len(mask))
    np.testing.assert_allclose(
        estimators.remax(rewards, greedy, mask, discount),
        np.where(mask, expected - greedy[:, None], 0),
        rtol=1e-5,
        atol=1e-5,
    )


def test_reinforce_plus_plus_baseline_whitens_what_is_left_of_the_group_s_mean(draw, mask):
    scores = draw(len(mask))
    expected = reference.whiten(oracle.spread(oracle.grpo(scores, GROUPS, mask, False), mask), mask)
    advantages = estimators.reinforce_plus_plus_baseline(scores, GROUPS, mask)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_gdpo_equals_the_oracle_and_does_not_feel_the_scale_of_a_component(normalize, draw, mask):
    components, weights = draw(len(mask), 3), np.array([1.0, 0.5, 2.0], np.float32)
    components[3] = np.nan
    expected = oracle.gdpo(components, weights, GROUPS, mask, normalize)
    advantages = estimators.gdpo(components, weights, GROUPS, mask, normalize)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    if normalize:
        louder = components * np.array([1.0, 100.0, 1.0], np.float32)
        again = estimators.gdpo(louder, weights, GROUPS, mask, normalize)
        np.testing.assert_allclose(again, advantages, rtol=1e-3, atol=1e-4)
