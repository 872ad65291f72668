"""The clipped objectives against the oracle by cases, gradients against finite differences, limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxflow.algorithms.objectives import clipped_objective, clipped_value_loss
from jaxflow.types import UserError

SHAPE = (6, 50)
EVERYWHERE = np.ones(SHAPE, bool)


@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
@pytest.mark.parametrize("scale", [0.1, 1.5, 40.0])
def test_policy_losses_and_indicators_equal_the_oracle(draw, scale, dual_clip):
    log_probs, old, advantages = draw(*SHAPE, scale=scale), draw(*SHAPE, scale=scale), draw(*SHAPE)
    call = jax.jit(functools.partial(clipped_objective, dual_clip=dual_clip))
    losses, indicators = call(log_probs, old, advantages, 0.2, 0.28)
    for output, result in enumerate((losses, indicators.clipped, indicators.clipped_lower)):
        expected = reference.per_token(
            lambda p, q, a, i=output: reference.policy_token(p, q, a, 0.2, 0.28, dual_clip)[i],
            EVERYWHERE,
            log_probs,
            old,
            advantages,
        )
        np.testing.assert_allclose(result, expected, rtol=2e-5)
    assert indicators.clipped.any()
    assert indicators.clipped_lower.any() == (dual_clip != 0.0 and scale > 1)


@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
def test_policy_gradient_equals_finite_differences_of_the_oracle(draw, dual_clip):
    log_probs, old, advantages = draw(4, 9), draw(4, 9), draw(4, 9)

    def oracle(x):
        return reference.total(
            lambda p, q, a: reference.policy_token(p, q, a, 0.2, 0.28, dual_clip)[0], x, old, advantages
        )

    with jax.enable_x64(True):
        x, old_x, advantages_x = (jnp.asarray(a, jnp.float64) for a in (log_probs, old, advantages))
        gradient = jax.grad(
            lambda x: clipped_objective(x, old_x, advantages_x, 0.2, 0.28, dual_clip)[0].sum()
        )(x)
    np.testing.assert_allclose(gradient, reference.numeric_gradient(oracle, log_probs), rtol=1e-5, atol=1e-8)


def test_at_ratio_one_the_gradient_is_that_of_the_plain_policy_gradient(draw):
    log_probs, advantages = draw(3, 5), draw(3, 5)
    gradient = jax.grad(lambda x: clipped_objective(x, log_probs, advantages, 0.2, 0.2, 3.0)[0].sum())(
        log_probs
    )
    np.testing.assert_allclose(gradient, -advantages, rtol=1e-6)


def test_log_ratios_beyond_twenty_stay_finite_and_bounded():
    log_probs = jnp.array([[60.0, 60.0, -60.0, -60.0]])
    advantages = jnp.array([[1.0, -1.0, 1.0, -1.0]])

    def total(x):
        losses, _ = clipped_objective(x, jnp.zeros((1, 4)), advantages, 0.2, 0.2, 3.0)
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(log_probs)
    np.testing.assert_allclose(losses, [[-1.2, 3.0, 0.0, 0.8]], atol=1e-6)
    np.testing.assert_array_equal(gradient, np.zeros((1, 4)))


def test_without_the_dual_clip_a_bad_token_with_a_large_ratio_costs_the_ratio():
    losses, indicators = clipped_objective(
        jnp.log(jnp.array([[8.0]])), jnp.zeros((1, 1)), jnp.array([[-1.0]]), 0.2, 0.2, 0.0
    )
    np.testing.assert_allclose(losses, [[8.0]], rtol=1e-6)
    assert not indicators.clipped_lower.any()


def test_zero_advantages_give_no_loss_no_gradient_and_clip_nothing(draw):
    log_probs, zeros = draw(2, 4), jnp.zeros((2, 4))
    losses, indicators = clipped_objective(log_probs, zeros, zeros, 0.2, 0.2, 3.0)
    gradient = jax.grad(lambda x: clipped_objective(x, zeros, zeros, 0.2, 0.2, 3.0)[0].sum())(log_probs)
    assert not losses.any() and not gradient.any()
    assert not indicators.clipped.any() and not indicators.clipped_lower.any()


@pytest.mark.parametrize("dual_clip", [0.5, 1.0, -3.0])
def test_a_dual_clip_not_above_one_is_refused(dual_clip):
    with pytest.raises(UserError, match="dual_clip"):
        clipped_objective(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.zeros((1, 1)), 0.2, 0.2, dual_clip)


@pytest.mark.parametrize("value_clip", [0.0, 0.5])
def test_value_losses_and_indicator_equal_the_oracle(draw, value_clip):
    values, old, returns = draw(*SHAPE), draw(*SHAPE), draw(*SHAPE)
    results = jax.jit(functools.partial(clipped_value_loss, value_clip=value_clip))(values, old, returns)
    for output, result in enumerate(results):
        expected = reference.per_token(
            lambda v, o, g, i=output: reference.value_token(v, o, g, value_clip)[i],
            EVERYWHERE,
            values,
            old,
            returns,
        )
        np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert results[1].any() == (value_clip != 0.0)


@pytest.mark.parametrize("value_clip", [0.0, 0.5])
def test_value_gradient_equals_finite_differences_of_the_oracle(draw, value_clip):
    values, old, returns = draw(4, 9), draw(4, 9), draw(4, 9)

    def oracle(x):
        return reference.total(lambda v, o, g: reference.value_token(v, o, g, value_clip)[0], x, old, returns)

    gradient = jax.grad(lambda x: clipped_value_loss(x, old, returns, value_clip)[0].sum())(values)
    np.testing.assert_allclose(gradient, reference.numeric_gradient(oracle, values), rtol=1e-4, atol=1e-5)


def test_arrays_of_different_shapes_are_refused():
    with pytest.raises(AssertionError):
        clipped_objective(jnp.zeros((2, 3)), jnp.zeros((2, 1)), jnp.zeros((2, 3)), 0.2, 0.2, 0.0)
    with pytest.raises(AssertionError):
        clipped_value_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((3,)), 0.5)
