"""The key/value cache: one pair of arrays per layer, contiguous per row. Knows shapes and layout only."""

from __future__ import annotations

import jax.numpy as jnp

from jaxflow.engine.sharding import Layout
from jaxflow.models.decoder_config import DecoderConfig

# [B, K, S, H]: positions of one head are neighbours, so a decode step reads each head's past in one sweep.
NAMES = ("batch", "kv_heads", None, None)


def empty_cache(config: DecoderConfig, rows: int, positions: int, dtype: str, layout: Layout):
    """Return zeros for every layer; each buffer is its own, so that each can be updated in place."""
    shape = (rows, config.kv_heads, positions, config.head_width)
    return tuple(
        tuple(layout.constrain(jnp.zeros(shape, dtype), NAMES) for _ in ("keys", "values"))
        for _ in range(config.layers)
    )
