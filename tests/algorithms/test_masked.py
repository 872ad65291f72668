"""Sums, means and whitening against loops, and at masks of none and one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxflow.algorithms.masked import masked_mean, masked_sum, masked_variance, on_mask, whiten


def test_sum_mean_and_variance_equal_the_loops(draw, mask):
    x = draw(*mask.shape)
    values = reference.chosen(x, mask)
    np.testing.assert_allclose(masked_sum(x, mask), sum(values), rtol=1e-5)
    np.testing.assert_allclose(masked_mean(x, mask), reference.mean(values), rtol=1e-5)
    np.testing.assert_allclose(masked_variance(x, mask), np.var(values, ddof=1), rtol=1e-5)


def test_whitening_equals_the_loops_with_and_without_jit(draw, mask):
    x = draw(*mask.shape, scale=3.0) + 5
    expected = reference.whiten(x, mask)
    np.testing.assert_allclose(whiten(x, mask), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(whiten)(x, mask), expected, atol=1e-5)


def test_whitened_values_have_mean_zero_and_sample_variance_one(draw, mask):
    values = reference.chosen(whiten(draw(*mask.shape) * 4 - 9, mask), mask)
    assert abs(np.mean(values)) < 1e-5
    assert abs(np.var(values, ddof=1) - 1) < 1e-4


def test_nan_off_the_mask_reaches_no_value_and_no_gradient(draw, mask):
    x = np.where(mask, draw(*mask.shape), np.nan)
    clean = np.where(mask, x, 0)
    for function in (masked_sum, masked_mean, masked_variance, whiten):
        np.testing.assert_array_equal(function(x, mask), function(clean, mask))
    gradient = jax.grad(lambda y: jnp.sum(jnp.exp(on_mask(y, mask)) * whiten(y, mask)))(x)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient)[~mask] == 0)


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_variance])
def test_an_empty_mask_gives_zero(function):
    assert function(jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)) == 0


@pytest.mark.parametrize("true_positions", [0, 1])
def test_whitening_fewer_than_two_values_gives_zeros(true_positions):
    mask = jnp.arange(6).reshape(2, 3) < true_positions
    np.testing.assert_array_equal(whiten(jnp.full((2, 3), 7.0), mask), np.zeros((2, 3)))


def test_whitening_equal_values_gives_zeros(mask):
    np.testing.assert_array_equal(whiten(jnp.full(mask.shape, 0.5), jnp.asarray(mask)), np.zeros(mask.shape))


def test_a_mask_of_another_shape_or_type_is_refused(mask):
    with pytest.raises(AssertionError):
        masked_sum(jnp.zeros((8, 1)), mask)
    with pytest.raises(AssertionError):
        masked_sum(jnp.zeros(mask.shape), mask.astype(np.float32))
