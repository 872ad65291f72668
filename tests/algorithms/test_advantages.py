"""GAE against a sum of residuals, by hand, and in its two limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxflow.algorithms.advantages import gae


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (0.0, 0.7)])
def test_gae_equals_the_sum_of_residuals(draw, mask, discount, gae_lambda):
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    expected = reference.gae(rewards, values, mask, discount, gae_lambda)
    for function in (gae, jax.jit(gae)):
        for result, oracle in zip(
            function(rewards, values, mask, discount, gae_lambda), expected, strict=True
        ):
            np.testing.assert_allclose(result, oracle, atol=1e-5)


def test_gae_by_hand():
    rewards, values = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[0.5, 1.0, 1.5]])
    advantages, returns = gae(rewards, values, jnp.ones((1, 3), bool), 0.5, 0.5)
    # Residuals: 0 + ½·1 − ½ = 0, 1 + ½·1.5 − 1 = 0.75, 2 − 1.5 = 0.5; each advantage adds ¼ of the next.
    np.testing.assert_allclose(advantages, [[0.21875, 0.875, 0.5]])
    np.testing.assert_allclose(returns, [[0.71875, 1.875, 2.0]])


def test_a_gap_between_response_tokens_is_as_if_it_were_not_there(draw):
    rewards, values = draw(1, 6), draw(1, 6)
    mask = np.array([[0, 1, 1, 0, 0, 1]], bool)
    with_gap, _ = gae(rewards, values, mask, 0.9, 0.8)
    without, _ = gae(rewards[mask][None], values[mask][None], np.ones((1, 3), bool), 0.9, 0.8)
    np.testing.assert_allclose(np.asarray(with_gap)[mask], without[0], rtol=1e-6)


def test_garbage_off_the_mask_is_never_read_and_leaves_as_zero(draw, mask):
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    dirty = gae(np.where(mask, rewards, np.nan), np.where(mask, values, np.inf), mask, 0.9, 0.8)
    for result, clean in zip(dirty, gae(rewards, values, mask, 0.9, 0.8), strict=True):
        np.testing.assert_array_equal(result, clean)
        assert np.all(np.asarray(result)[~mask] == 0)


def test_lambda_one_makes_returns_the_rewards_to_come_whatever_the_critic_says(draw, mask):
    rewards = np.where(mask, draw(*mask.shape), 0)
    to_come = np.where(mask, np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1], 0)
    for values in (draw(*mask.shape), 100 * draw(*mask.shape)):
        np.testing.assert_allclose(gae(rewards, values, mask, 1.0, 1.0)[1], to_come, atol=1e-3)


def test_a_perfect_critic_leaves_no_advantage():
    rewards = jnp.array([[1.0, 2.0, 3.0]])
    advantages, returns = gae(rewards, jnp.array([[6.0, 5.0, 3.0]]), jnp.ones((1, 3), bool), 1.0, 0.95)
    np.testing.assert_allclose(advantages, np.zeros((1, 3)), atol=1e-6)
    np.testing.assert_allclose(returns, [[6.0, 5.0, 3.0]])


def test_a_row_does_not_depend_on_its_batch(draw, mask):
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    whole, _ = gae(rewards, values, mask, 0.9, 0.8)
    alone, _ = gae(rewards[1:2], values[1:2], mask[1:2], 0.9, 0.8)
    np.testing.assert_allclose(alone[0], whole[1], rtol=1e-6)


def test_arrays_of_different_shapes_are_refused(mask):
    with pytest.raises(AssertionError):
        gae(jnp.zeros((8, 7)), jnp.zeros((8, 1)), jnp.asarray(mask), 1.0, 1.0)
