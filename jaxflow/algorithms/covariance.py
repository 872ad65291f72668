"""Which few tokens drive the entropy down: those where advantage and log-probability rise together.

Cui et al., "The Entropy Mechanism of Reinforcement Learning", arXiv:2505.22617. Sees the whole step at once.

Note: the paper takes the covariance under the policy in training, batch by batch; here it is taken once per step,
under π_old. Which tokens are singled out then depends on the data alone: not on mini-batches, micro-batches, devices.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow.algorithms.masked import masked_mean, on_mask


def covariances(
    log_probs: Float[Array, "B T"], advantages: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Return (Â_t − mean Â)·(ℓ_t − mean ℓ) at each response token, means over the step; 0 elsewhere."""
    chex.assert_equal_shape([log_probs, advantages, mask])
    log_probs, advantages = on_mask(log_probs, mask), on_mask(advantages, mask)
    spread = (advantages - masked_mean(advantages, mask)) * (log_probs - masked_mean(log_probs, mask))
    return on_mask(spread, mask)


def largest(x: Float[Array, "B T"], mask: Bool[Array, "B T"], fraction: float) -> Bool[Array, "B T"]:
    """Return the max(1, ⌊fraction·N⌋) largest of the N true positions; of equals the first. None of an empty mask."""
    order = jnp.argsort(jnp.where(mask, -x, jnp.inf).reshape(-1), stable=True)
    ranks = jnp.zeros_like(order).at[order].set(jnp.arange(order.size)).reshape(x.shape)
    return mask & (ranks < _number(mask, fraction))


def drawn_between(
    x: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    fraction: float,
    low: float,
    high: float,
    key: Array,
) -> Bool[Array, "B T"]:
    """Return max(1, ⌊fraction·N⌋) positions drawn evenly from those with low < x < high, or all where there are fewer.

    N counts the whole mask; the draw is a function of the key and of each position's place in the batch.
    """
    inside = mask & (x > low) & (x < high)
    lots = jax.random.uniform(key, x.shape)
    order = jnp.argsort(jnp.where(inside, lots, jnp.inf).reshape(-1), stable=True)
    ranks = jnp.zeros_like(order).at[order].set(jnp.arange(order.size)).reshape(x.shape)
    return inside & (ranks < _number(mask, fraction))


def _number(mask: Bool[Array, "B T"], fraction: float) -> Array:
    tokens = jnp.sum(mask)
    # Float32 rounds a product of 16 million tokens; the half-ulp is far below one token of a batch.
    return jnp.maximum(jnp.floor(fraction * tokens).astype(jnp.int32), 1)
