"""The one place that picks how queries meet keys. Knows no model and no sampling.

CPU and float32: XLA. GPU in half precision: cuDNN through `jax.nn.dot_product_attention` for whole sequences, and for
single tokens the decoding kernel that ships with JAX (decoding_kernel.py); but for scores with a soft-cap, which
neither has. Each choice is logged once. Rows are right-padded, so causality alone keeps real queries from padded keys.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxflow.engine import decoding_kernel
from jaxflow.engine.sharding import Layout
from jaxflow.models.layers import Attend, AttentionRule

_log = logging.getLogger(__name__)
_NEVER = -1e30  # a masked score; finite, so that a row with nothing to attend to stays finite


@functools.cache
def _cudnn_is_there() -> bool:
    """Return whether JAX finds cuDNN; a machine that only compiles for GPUs has none."""
    x = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    fused = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    try:
        jax.eval_shape(fused, x, x, x)
    except RuntimeError as error:
        _log.warning("no cuDNN: %s", error)
        return False
    return True


@functools.cache
def _whole_sequence_kernel(platform: str, dtype: str, capped: bool) -> str | None:
    """Return the `implementation` for whole sequences, None being XLA."""
    wanted = platform == "gpu" and dtype in ("bfloat16", "float16") and not capped
    choice = "cudnn" if wanted and _cudnn_is_there() else None
    kind = "soft-capped attention" if capped else "attention"
    _log.info("%s over whole sequences on %s in %s: %s", kind, platform, dtype, choice or "xla")
    return choice


def _visible(
    queries: Int[Array, "*B T 1"], keys: Int[Array, "S"], rule: AttentionRule
) -> Bool[Array, "*B T S"]:
    """Return which positions of keys a query sees: its own and those before, in a local layer the nearest ones."""
    visible = keys <= queries
    if rule.local is False:
        return visible
    near = visible & (keys > queries - rule.window)
    return near if rule.local is True else jnp.where(rule.local, near, visible)


def _mix(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    visible: Array,
    rule: AttentionRule,
    by_query: bool = False,
) -> Float[Array, "B T N H"]:
    """softmax(cap(scale · q·kᵀ)) v with grouped heads, in float32 inside; `visible` broadcasts to [B, T, S].

    Heads stand before positions, so that both products are plain batched ones, and the weights are normalised
    after they have mixed the values: H numbers per query to divide instead of S. `by_query` is of a single position:
    each query of a group meets the keys in a product of its own.
    """
    b, t, n, h = queries.shape
    k = keys.shape[1]
    grouped = (queries * rule.scale).reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    if by_query:
        met = functools.partial(jnp.einsum, "bksh,bkh->bks", keys, preferred_element_type=jnp.float32)
        scores = jnp.stack([met(grouped[:, :, i, 0]) for i in range(n // k)], axis=2)[..., None, :]
    else:
        scores = jnp.einsum("bkgth,bksh->bkgts", grouped, keys, preferred_element_type=jnp.float32)
    if rule.softcap > 0.0:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    scores = jnp.where(visible[:, None, None], scores, _NEVER)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bkgts,bksh->bkgth", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return (mixed / total).astype(values.dtype).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _fused(queries: Array, keys: Array, values: Array, rule: AttentionRule, kernel: str) -> Array:
    """Mix by a kernel that wants its window static: layers of both kinds in one scan branch to one of two."""

    def within(window: tuple[int, int] | None):
        return lambda: jax.nn.dot_product_attention(
            queries,
            keys,
            values,
            scale=rule.scale,
            is_causal=True,
            local_window_size=window,
            implementation=kernel,
        )

    near, whole = within((rule.window - 1, 0)), within(None)
    if isinstance(rule.local, bool):
        return near() if rule.local else whole()
    return jax.lax.cond(rule.local, near, whole)


def whole_sequence(platform: str) -> Attend:
    """Return causal attention of a right-padded sequence to itself, for training and scoring."""

    def attend(queries, keys, values, rule, carry):
        kernel = _whole_sequence_kernel(platform, queries.dtype.name, rule.softcap > 0.0)
        if kernel is not None:
            return _fused(queries, keys, values, rule, kernel), carry
        positions = jnp.arange(queries.shape[1])
        visible = _visible(positions[:, None], positions, rule)[None]
        return _mix(queries, keys.swapaxes(1, 2), values.swapaxes(1, 2), visible, rule), carry

    return attend


def keeping(platform: str) -> Attend:
    """Return whole-sequence attention whose carry becomes the keys and values [B, K, T, H], as caches hold them."""
    attend_whole = whole_sequence(platform)

    def attend(queries, keys, values, rule, carry):
        mixed, _ = attend_whole(queries, keys, values, rule, None)
        return mixed, (keys.swapaxes(1, 2), values.swapaxes(1, 2))

    return attend


@functools.cache
def _single_token_kernel(
    platform: str, dtype: str, capped: bool, fits: bool
) -> Callable[..., Float[Array, "B 1 N H"]] | None:
    """Return what mixes single tokens, None being XLA."""
    wanted = platform == "gpu" and dtype == "bfloat16" and not capped
    choice = decoding_kernel.mix if wanted and fits and decoding_kernel.is_there() else None
    kind = "soft-capped attention" if capped else "attention"
    why = " (the cache does not suit the kernel)" if wanted and not fits else ""
    name = "xla" if choice is None else "pallas"
    _log.info("%s of single tokens on %s in %s: %s%s", kind, platform, dtype, name, why)
    return choice


def one_token(platform: str, positions: Int[Array, "B"], layout: Layout) -> Attend:
    """Return attention of one new token per row, written to its row's position, to that row's past."""
    # XLA's matrix products on CPU repack the keys for each call; those of a matrix and a vector read them where they
    # are, twice to three times as fast even though each query of a group reads them anew.
    by_query = platform == "cpu"

    def write(slot, new, position):
        return jax.lax.dynamic_update_slice(slot, new.astype(slot.dtype), (0, position, 0))

    def attend(queries, keys, values, rule, cache):
        key_cache, value_cache = (
            jax.vmap(write)(slot, new.swapaxes(1, 2), positions)
            for slot, new in zip(cache, (keys, values), strict=True)
        )
        fits = decoding_kernel.fits(key_cache.shape, layout)
        dtype = jnp.promote_types(queries.dtype, key_cache.dtype).name
        kernel = _single_token_kernel(platform, dtype, rule.softcap > 0.0, fits)
        if kernel is not None:
            mixed = kernel(queries, key_cache, value_cache, positions, rule, layout)
        else:
            visible = _visible(positions[:, None, None], jnp.arange(key_cache.shape[2]), rule)
            mixed = _mix(queries, key_cache, value_cache, visible, rule, by_query)
        return mixed, (key_cache, value_cache)

    return attend
