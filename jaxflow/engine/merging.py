"""Weights with adapters become weights without them, for a rollout that runs at a plain model's speed.

Knows a model and a layout. Each device merges its own shards: what an adapter reduces to is small and gathered.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxflow.engine.sharding import Layout
from jaxflow.models.adapters import merged
from jaxflow.models.transformer import Model, Params


def merging(model: Model, layout: Layout, dtype: str) -> Callable[[Params], Params]:
    """Return the compiled merge of a model with adapters: its base's weights in the same layout, in `dtype`."""

    def merge(params: Params) -> Params:
        return jax.tree.map(lambda weight: weight.astype(dtype), merged(params, model.adapters))

    return jax.jit(merge, out_shardings=layout.weights(model.base.names))
