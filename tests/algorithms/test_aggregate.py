"""Aggregation against loops over the whole mini-batch, and its independence of micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import counts_of

from jaxflow.algorithms.aggregate import AGGREGATIONS, aggregate
from jaxflow.types import UserError


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_every_mode_equals_the_loops(draw, mask, mode):
    losses = np.where(mask, draw(*mask.shape), np.nan)
    value = jax.jit(aggregate, static_argnames="mode")(losses, mask, mode, counts_of(mask), 5.0)
    np.testing.assert_allclose(value, reference.aggregate(losses, mask, mode, 5.0), rtol=1e-5)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_one_microbatch_equals_four_of_unequal_sizes(draw, mask, mode):
    losses, counts = draw(*mask.shape), counts_of(mask)
    pieces = [
        aggregate(losses[rows], mask[rows], mode, counts, 5.0)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 8))
    ]
    np.testing.assert_allclose(sum(pieces), aggregate(losses, mask, mode, counts, 5.0), rtol=1e-5)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_padding_rows_and_columns_change_nothing(draw, mask, mode):
    losses = draw(*mask.shape)
    wide_losses = np.pad(losses, ((0, 3), (0, 4)), constant_values=np.nan)
    wide_mask = np.pad(mask, ((0, 3), (0, 4)))
    np.testing.assert_allclose(
        aggregate(wide_losses, wide_mask, mode, counts_of(wide_mask), 5.0),
        aggregate(losses, mask, mode, counts_of(mask), 5.0),
        rtol=1e-6,
    )


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_gradient_equals_the_oracles_and_is_zero_off_the_mask(draw, mask, mode):
    losses = draw(*mask.shape)
    gradient = jax.grad(aggregate)(losses, mask, mode, counts_of(mask), 5.0)
    expected = reference.numeric_gradient(lambda x: reference.aggregate(x, mask, mode, 5.0), losses)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert np.all(np.asarray(gradient)[~mask] == 0)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_an_empty_mask_aggregates_to_zero(mode):
    mask = jnp.zeros((2, 3), bool)
    assert aggregate(jnp.full((2, 3), jnp.nan), mask, mode, counts_of(mask), 5.0) == 0


def test_an_unknown_mode_is_named_with_the_legal_ones(mask):
    with pytest.raises(UserError, match=r"'mean' is unknown.*token-mean"):
        aggregate(jnp.zeros(mask.shape), mask, "mean", counts_of(mask), 5.0)
