"""The one place that picks how queries meet keys. Knows no model and no sampling.

CPU and float32: XLA. GPU in half precision: cuDNN through `jax.nn.dot_product_attention` for whole sequences.
Each choice is logged once. Rows are right-padded, so causality alone keeps real queries from padded keys.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_log = logging.getLogger(__name__)
_NEVER = -1e30  # a masked score; finite, so that a row with nothing to attend to stays finite


@functools.cache
def _whole_sequence_kernel(platform: str, dtype: str) -> str | None:
    """Return the `implementation` for whole sequences, None being XLA."""
    choice = "cudnn" if platform == "gpu" and dtype in ("bfloat16", "float16") else None
    _log.info("attention over whole sequences on %s in %s: %s", platform, dtype, choice or "xla")
    return choice


def _mix(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    visible: Array,
) -> Float[Array, "B T N H"]:
    """softmax(q·kᵀ/√H) v with grouped heads, in float32 inside; `visible` broadcasts to [B, T, S].

    Heads stand before positions, so that both products are plain batched ones, and the weights are normalised
    after they have mixed the values: H numbers per query to divide instead of S.
    """
    b, t, n, h = queries.shape
    k = keys.shape[1]
    grouped = (queries * h**-0.5).reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bkgth,bksh->bkgts", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores, _NEVER)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bkgts,bksh->bkgth", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return (mixed / total).astype(values.dtype).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def whole_sequence(platform: str) -> Callable[[Array, Array, Array, Any], tuple[Array, Any]]:
    """Return causal attention of a right-padded sequence to itself, for training and scoring."""

    def attend(queries, keys, values, carry):
        kernel = _whole_sequence_kernel(platform, queries.dtype.name)
        if kernel is not None:
            mixed = jax.nn.dot_product_attention(queries, keys, values, is_causal=True, implementation=kernel)
            return mixed, carry
        positions = jnp.arange(queries.shape[1])
        visible = (positions[None, :] <= positions[:, None])[None]
        return _mix(queries, keys.swapaxes(1, 2), values.swapaxes(1, 2), visible), carry

    return attend


def filling_cache(platform: str) -> Callable[[Array, Array, Array, Any], tuple[Array, Any]]:
    """Return whole-sequence attention that also writes keys and values to the front of an empty cache."""
    attend_whole = whole_sequence(platform)

    def attend(queries, keys, values, cache):
        mixed, _ = attend_whole(queries, keys, values, None)
        filled = tuple(
            jax.lax.dynamic_update_slice(slot, new.swapaxes(1, 2).astype(slot.dtype), (0, 0, 0, 0))
            for slot, new in zip(cache, (keys, values), strict=True)
        )
        return mixed, filled

    return attend


def one_token(positions: Int[Array, "B"]) -> Callable[[Array, Array, Array, Any], tuple[Array, Any]]:
    """Return attention of one new token per row, written to its row's position, to that row's past."""

    def write(slot, new, position):
        return jax.lax.dynamic_update_slice(slot, new.astype(slot.dtype), (0, position, 0))

    def attend(queries, keys, values, cache):
        key_cache, value_cache = (
            jax.vmap(write)(slot, new.swapaxes(1, 2), positions)
            for slot, new in zip(cache, (keys, values), strict=True)
        )
        visible = (jnp.arange(key_cache.shape[2])[None, :] <= positions[:, None])[:, None, :]
        return _mix(queries, key_cache, value_cache, visible), (key_cache, value_cache)

    return attend
