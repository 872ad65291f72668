"""Sums, means and whitening over the true positions of a mask.

Knows no batch type and no algorithm. What stands off the mask, NaN included, reaches neither a value nor a
gradient.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

WHITEN_EPSILON = 1e-8
"""Added to the variance, so that equal values whiten to zero; part of the formula, not a setting."""


def on_mask(x: Shaped[Array, "..."], mask: Bool[Array, "..."]) -> Shaped[Array, "..."]:
    """Return x where the mask is true and 0 elsewhere.

    Apply it to the *inputs* of a formula: the derivative of exp at NaN, times the zero gradient that a
    `where` after the formula sends back, is NaN still.
    """
    chex.assert_equal_shape([x, mask])
    chex.assert_type(mask, bool)
    return jnp.where(mask, x, jnp.zeros_like(x))


def masked_sum(x: Shaped[Array, "..."], mask: Bool[Array, "..."]) -> Shaped[Array, ""]:
    """Return Σ_m x, 0 for an empty mask."""
    return jnp.sum(on_mask(x, mask))


def masked_mean(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Return Σ_m x / Σ m, 0 for an empty mask."""
    return masked_sum(x, mask) / jnp.maximum(jnp.sum(mask), 1)


def masked_variance(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Return the sample variance Σ_m (x − mean)² / (n − 1), 0 for fewer than two true positions."""
    squares = jnp.square(on_mask(x, mask) - masked_mean(x, mask))
    return masked_sum(squares, mask) / jnp.maximum(jnp.sum(mask) - 1, 1)


def whiten(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Return (x − mean) / √(var + 1e-8) on the mask and 0 elsewhere, var being the sample variance (n − 1).

    One true position, or equal values, give 0.
    """
    chex.assert_type(x, float)
    centred = on_mask(x, mask) - masked_mean(x, mask)
    return on_mask(centred / jnp.sqrt(masked_variance(x, mask) + WHITEN_EPSILON), mask)


def row_means(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B"]:
    """Return Σ_m x / Σ m of each row, 0 for a row without true positions."""
    return jnp.sum(on_mask(x, mask), axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
