"""Low-rank adapters (LoRA, arXiv 2106.09685): what of a model is trained beside weights that stay.

Beside a weight X of the layers lies X_adapter = {reduce, expand}, and y = x·X + (α/r)·(x·reduce)·expand. Knows no
mesh, no optimizer and no file.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxflow.models.layers import named_weight, project

SUFFIX = "_adapter"
ATTENTION_TARGETS, MLP_TARGETS = ("query", "key", "value", "output"), ("gate", "up", "down")
TARGETS = ATTENTION_TARGETS + MLP_TARGETS
INPUTS = {"output": 2}
"""Dimensions that a weight contracts where they are several: heads and their width."""


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which weights are adapted, and how."""

    rank: int  # r, at least 1
    alpha: float  # α
    targets: tuple[str, ...]  # of TARGETS
    base_dtype: str  # float32 | bfloat16, of all weights that are not trained

    @property
    def scale(self) -> float:
        """Return α/r."""
        return self.alpha / self.rank


class Adapter(nnx.Module):
    """(α/r)·(x·reduce)·expand beside one weight; nothing at first, for `expand` begins at zero."""

    def __init__(self, adapters: Adapters, target: str, weight: nnx.Param, rngs: nnx.Rngs):
        inputs, names = INPUTS.get(target, 1), weight.get_metadata()["out_sharding"]
        bound = math.prod(weight.shape[:inputs]) ** -0.5
        shape = (*weight.shape[:inputs], adapters.rank)
        drawn = jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
        expand = jnp.zeros((adapters.rank, *weight.shape[inputs:]), jnp.float32)
        self.reduce = named_weight(drawn, (*names[:inputs], None))
        self.expand = named_weight(expand, (None, *names[inputs:]))
        self.scale = adapters.scale

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B *F"]:
        """Return what is added to the product of x with the weight; what the weight contracts is one dimension."""
        reduce = self.reduce.get_value()
        reduced = project(x, reduce.reshape(-1, reduce.shape[-1]))
        return project(reduced, self.expand.get_value()) * jnp.asarray(self.scale, x.dtype)


def adapters_beside(
    weights: Mapping[str, nnx.Param], adapters: Adapters | None, rngs: nnx.Rngs
) -> list[Adapter | None]:
    """Return an adapter, or None, for each of a block's weights that could have one, in their order."""
    asked = () if adapters is None else adapters.targets
    return [
        Adapter(adapters, target, weight, rngs) if target in asked else None
        for target, weight in weights.items()
    ]


def is_adapter(path: tuple[str, ...]) -> bool:
    """Return whether the weight at this path is an adapter's."""
    return any(key.endswith(SUFFIX) for key in path)


def select(
    tree: Mapping[str, Any], chosen: Callable[[tuple[str, ...]], bool], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the leaves of a nested dict whose paths are chosen, in a nested dict without empty branches."""
    kept = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            below = select(value, chosen, (*path, key))
            if below:
                kept[key] = below
        elif chosen((*path, key)):
            kept[key] = value
    return kept


def join(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of two nested dicts that have none in common, keys in sorted order."""
    return {
        key: join(one[key], other[key]) if key in one and key in other else one.get(key, other.get(key))
        for key in sorted({*one, *other})
    }


def merged(params: Mapping[str, Any], adapters: Adapters) -> dict[str, Any]:
    """Return weights without adapters that compute the same: X + (α/r)·reduce·expand, summed in float32."""
    # A GPU would round the factors of a float32 product to fewer bits unless asked not to.
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    whole = {}
    for key, value in params.items():
        if key.endswith(SUFFIX):
            continue
        whole[key] = merged(value, adapters) if isinstance(value, Mapping) else value
        if key + SUFFIX in params:
            beside = params[key + SUFFIX]
            by_layer = jax.vmap(functools.partial(product, key, einsum=einsum))
            change = by_layer(beside["reduce"], beside["expand"])
            whole[key] = value.astype(jnp.float32) + change * adapters.scale
    return whole


def product(target: str, reduce: Array, expand: Array, einsum: Callable[..., Array]) -> Array:
    """Return reduce·expand of one layer in the shape of the weight that they stand beside."""
    inputs, outputs = "mn"[: INPUTS.get(target, 1)], "opq"[: expand.ndim - 1]
    return einsum(f"{inputs}r,r{outputs}->{inputs}{outputs}", reduce, expand)
