"""KL estimates against loops and against the exact KL of a small vocabulary; shaping; the controller."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxflow.algorithms.kl import KL_ESTIMATORS, adapt_coefficient, kl_estimate, shape_rewards
from jaxflow.types import UserError


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_every_estimator_equals_the_loops(draw, mask, estimator, scale):
    log_probs, reference_log_probs = draw(*mask.shape, scale=scale), draw(*mask.shape, scale=scale)
    everywhere = np.ones_like(mask)
    expected = reference.per_token(
        lambda p, q: reference.kl_token(p, q, estimator), everywhere, log_probs, reference_log_probs
    )
    result = jax.jit(kl_estimate, static_argnames="estimator")(log_probs, reference_log_probs, estimator)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_gradient_equals_finite_differences(draw, mask, estimator, scale):
    log_probs, reference_log_probs = draw(*mask.shape, scale=scale), draw(*mask.shape, scale=scale)

    def oracle(x):
        return reference.total(lambda p, q: reference.kl_token(p, q, estimator), x, reference_log_probs)

    gradient = jax.grad(lambda x: jnp.sum(kl_estimate(x, reference_log_probs, estimator)))(log_probs)
    np.testing.assert_allclose(gradient, reference.numeric_gradient(oracle, log_probs), rtol=1e-3, atol=1e-5)


def test_k1_and_k3_are_unbiased_and_only_k2_has_the_gradient_of_the_kl():
    logits, target = jnp.array([0.3, -1.0, 0.8, 0.1]), jax.nn.log_softmax(jnp.array([0.0, 0.5, 0.2, -0.7]))

    def exact(x):
        log_probs = jax.nn.log_softmax(x)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - target))

    def expected(x, estimator):
        """The estimate averaged over every token of the vocabulary, sampled from the policy held constant."""
        log_probs = jax.nn.log_softmax(x)[None]
        probs = jax.lax.stop_gradient(jnp.exp(log_probs))
        return jnp.sum(probs * kl_estimate(log_probs, target[None], estimator))

    for estimator in ("k1", "k3"):
        np.testing.assert_allclose(expected(logits, estimator), exact(logits), rtol=1e-5)
    gradients = {estimator: jax.grad(expected)(logits, estimator) for estimator in KL_ESTIMATORS}
    np.testing.assert_allclose(gradients["k2"], jax.grad(exact)(logits), atol=1e-6)
    np.testing.assert_allclose(gradients["k1"], np.zeros(4), atol=1e-6)
    reverse = jax.nn.softmax(logits) - jnp.exp(target)
    np.testing.assert_allclose(gradients["k3"], reverse, atol=1e-6)


def test_k3_beyond_its_clamps_is_ten_without_gradient():
    log_probs, reference_log_probs = jnp.array([[0.0, 0.0, 0.0]]), jnp.array([[2.7, 25.0, -25.0]])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(kl_estimate(x, reference_log_probs, "k3")))(
        log_probs
    )
    assert value == 30
    np.testing.assert_array_equal(gradient, np.zeros((1, 3)))


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_equal_policies_have_no_kl(draw, estimator):
    x = draw(3, 4)
    np.testing.assert_array_equal(kl_estimate(x, x, estimator), np.zeros((3, 4)))


def test_an_unknown_estimator_is_named_with_the_legal_ones():
    with pytest.raises(UserError, match=r"'k4' is unknown.*k1, k2, k3"):
        kl_estimate(jnp.zeros((1, 1)), jnp.zeros((1, 1)), "k4")


def test_shaped_rewards_equal_the_loops_whatever_is_off_the_mask(draw, mask):
    scores, kl = draw(len(mask)), draw(*mask.shape)
    expected = reference.shape_rewards(scores, kl, mask, 0.3)
    rewards = jax.jit(shape_rewards)(scores, np.where(mask, kl, np.nan), mask, 0.3)
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)


def test_the_score_is_paid_once_at_the_last_response_token():
    mask = jnp.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]], bool)
    rewards = shape_rewards(jnp.array([2.0, 5.0, -1.0]), jnp.ones((3, 5)), mask, 0.0)
    np.testing.assert_array_equal(rewards, [[0, 0, 0, 2, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, -1]])


def test_an_empty_row_gets_no_reward_even_with_a_nan_score():
    rewards = shape_rewards(jnp.array([jnp.nan]), jnp.ones((1, 2)), jnp.zeros((1, 2), bool), 0.1)
    np.testing.assert_array_equal(rewards, np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.11, 0.01 * (1 + 0.1 * 0.064)), (5.0, 0.01 * (1 + 0.2 * 0.064)), (0.0, 0.01 * (1 - 0.2 * 0.064))],
)
def test_the_coefficient_follows_the_clipped_error(kl, expected):
    assert math.isclose(adapt_coefficient(0.01, kl, 0.1, 10000.0, 640), expected, rel_tol=1e-12)


def test_the_coefficient_stays_at_the_target_and_through_a_broken_step():
    assert adapt_coefficient(0.01, 0.1, 0.1, 10000.0, 640) == 0.01
    assert adapt_coefficient(0.01, math.nan, 0.1, 10000.0, 640) == 0.01
