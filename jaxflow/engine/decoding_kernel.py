"""The decoding kernel that ships with JAX for NVIDIA GPUs, told where rows and heads lie. Knows no model, no choice.

Of each row it reads its own past only, in blocks of positions, whatever length the cache has; parts of a long past are
read side by side. What stands behind a row's length in its last block is read as well and weighs nothing, so that it
must be finite: a start writes zeros there (cache.py).
"""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxflow.engine.sharding import Layout
from jaxflow.models.layers import AttentionRule

_log = logging.getLogger(__name__)
BLOCK_POSITIONS = 128  # positions that are read together; caches that can be long are a multiple of it
_MOST_PARTS = 16  # of a row's past that are read side by side
_NARROWEST = 16  # head width that the GPU's matrix units take


def fits(shape: tuple[int, ...], layout: Layout) -> bool:
    """Return whether the kernel takes a cache [B, K, S, H]: S in whole blocks, H a power of two.

    And whether each device has the keys of its own queries and no others, as where there are fewer key heads than
    tensor ranks it has not.
    """
    positions, width = shape[2:]
    together = layout.axes["heads"] == layout.axes["kv_heads"]
    return together and positions % BLOCK_POSITIONS == 0 and width >= _NARROWEST and width & (width - 1) == 0


def mix(
    queries: Float[Array, "B 1 N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    positions: Int[Array, "B"],
    rule: AttentionRule,
    layout: Layout,
    interpret: bool = False,
) -> Float[Array, "B 1 N H"]:
    """softmax(scale · q·kᵀ) v over each row's positions up to its own, in a local layer the nearest ones.

    Scores and weights are float32; the parts of a row's past, at most 16, are added in the cache's dtype.
    `interpret` runs the kernel's program step by step where there is no GPU.
    """
    blocks = keys.shape[2] // BLOCK_POSITIONS
    kernel = functools.partial(
        _shipped().gqa,
        sm_scale=rule.scale,
        block_k=BLOCK_POSITIONS,
        k_splits=max(parts for parts in range(1, _MOST_PARTS + 1) if blocks % parts == 0),
        interpret=interpret,
    )
    ends = positions + 1
    starts = jnp.where(rule.local, jnp.maximum(ends - rule.window, 0), 0)

    def local(queries: Array, keys: Array, values: Array, starts: Array, ends: Array) -> Array:
        # It wants [B, S, K, H] and turns that into [B, K, S, H]: the two transpositions are none.
        there = (keys.swapaxes(1, 2), values.swapaxes(1, 2))
        return kernel(queries[:, 0], *there, start_idx=starts, kv_seq_len=ends)[:, None]

    of_heads, rows = layout.spec(("batch", None, "heads", None)), layout.spec(("batch",))
    cache = layout.spec(("batch", "kv_heads", None, None))
    run = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(of_heads, cache, cache, rows, rows),
        out_specs=of_heads,
        check_vma=False,  # the kernel's outputs do not say over which axes they vary
    )
    return run(queries, keys, values, starts, ends).astype(queries.dtype)  # it divides in float32


def is_there() -> bool:
    """Return whether this JAX still ships the kernel: 0.12 calls it deprecated, and names nothing in its place."""
    return _shipped() is not None


@functools.cache
def _shipped() -> ModuleType | None:
    """Return JAX's module, which is not imported where it is not used: that takes up to half a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return importlib.import_module("jax.experimental.pallas.ops.gpu.decode_attention")
        except ImportError as error:
            _log.warning("no decoding kernel: %s", error)
            return None
