"""What decoder layers are made of and what they run in: weights with names, products, norms, surroundings.

Knows no mesh and no cache: how queries meet keys, how activations are laid out and where layers run are functions
handed in (`Surroundings`). Weights carry logical axis names; tables elsewhere say which mesh axes those are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxflow.models.experts import ExpertWeights, Routing, mix_experts


@dataclasses.dataclass(frozen=True)
class AttentionRule:
    """How one layer's queries meet keys."""

    scale: float  # of the scores
    softcap: float  # c: scores s become c·tanh(s/c); 0: off
    window: int  # positions that a local layer sees, its own included
    # Whether this layer is one; an array where layers of both kinds are scanned
    local: bool | Bool[Array, ""]


Attend = Callable[[Array, Array, Array, AttentionRule, Any], tuple[Array, Any]]
"""(queries [B,T,N,H], keys [B,T,K,H], values [B,T,K,H], rule, carry) -> (mixed values [B,T,N,H], carry)."""

Constrain = Callable[[Array, Sequence[str | None]], Array]
"""(activation, one logical name or None per dimension) -> the same activation, its layout bound."""

Stream = tuple[Array, ...]
"""What goes from layer to layer of whole sequences: the activation [B,T,D], and notes [B,T,…] that are added up."""

Block = Callable[[Stream, Any], Stream]
"""(stream, what one layer has of its own) -> stream: a decoder layer as the functions below see it."""

OverLayers = Callable[[Block, Stream, Any], Stream]
"""(block, stream, all that layers have of their own, stacked on a leading axis) -> what leaves the last layer."""

MixExperts = Callable[[Array, Array, ExpertWeights, Routing], Array]
"""(x [B,T,D], router's logits [B,T,E], weights of all experts, routing) -> the experts' mixed results [B,T,D]."""


@dataclasses.dataclass(frozen=True)
class RoutingNotes:
    """What is noted of how a mixture's router treats each token, summed over layers."""

    note: Callable[[Array, Routing], Array]  # (router's logits [B,T,E], routing) -> float32 [B,T,*shape]
    shape: tuple[int, ...]  # of what is noted of one token


def scan_layers(block: Block, stream: Stream, stacked: Any) -> Stream:
    """Run the layers one after the other where they lie: one compiled block, scanned."""
    return jax.lax.scan(lambda stream, weights: (block(stream, weights), None), stream, stacked)[0]


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a decoder runs in: all that depends on a mesh or a cache, so that the model knows neither."""

    attend: Attend
    constrain: Constrain
    over_layers: OverLayers = scan_layers  # of whole sequences; layers with a carry are unrolled
    mix_experts: MixExperts = mix_experts
    routing_notes: RoutingNotes | None = None  # of whole sequences; None: nobody asks
    # What the blocks run in, where the way over them shows them something else than stands around; None: the same.
    of_blocks: Surroundings | None = None


def named_weight(value: Float[Array, "..."], names: Sequence[str | None]) -> nnx.Param:
    """Return a weight that bears a logical name per dimension, or None."""
    # Eager sharding would place each weight whole on one device first; they are born sharded under jit.
    return nnx.Param(value, out_sharding=tuple(names), eager_sharding=False)


def random_weight(
    rngs: nnx.Rngs, shape: Sequence[int], names: Sequence[str | None], scale: float
) -> nnx.Param:
    return named_weight(scale * jax.random.normal(rngs.params(), tuple(shape), jnp.float32), names)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turned:
    """A weight whose results are its rows, as products with few activations like it on a CPU (`turned_product`)."""

    # What is summed over is the second dimension, whatever the weight's own shape
    matrix: Float[Array, "F D"]
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of the weight
    summed: int = dataclasses.field(metadata={"static": True})  # its first dimensions, those summed over


def turn(weight: Float[Array, "*D *F"], summed: int) -> Turned:
    """Return a weight turned, of which the first dimensions are summed over."""
    size = math.prod(weight.shape[:summed])
    return Turned(weight.reshape(size, -1).T, weight.shape, summed)


_FEW_ROWS = 128


def turned_product(x: Float[Array, "B D"], matrix: Float[Array, "F D"]) -> Float[Array, "B F"]:
    """Return x · matrixᵀ in float32 or the dtype of x, if that is wider.

    Of few rows it is taken as (matrix · xᵀ)ᵀ: XLA's products on CPU repack their right side for each call, which
    with 16 rows costs as much again as the arithmetic where that side is the weight.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    sides, contracted = (x, matrix), (((1,), (1,)), ((), ()))
    if x.shape[0] > _FEW_ROWS:
        return jax.lax.dot_general(*sides, contracted, preferred_element_type=wide)
    product = jax.lax.dot_general(*reversed(sides), contracted, preferred_element_type=wide)
    # Without the barrier XLA folds the transpose into the product, and is back at x · matrixᵀ.
    return jax.lax.optimization_barrier(product).T


def project(
    x: Float[Array, "*B D"], weight: Float[Array, "D *F"] | Turned, summed: int = 1
) -> Float[Array, "*B *F"]:
    """Multiply by a weight in the activation's dtype, as one two-dimensional product.

    D are the weight's first `summed` dimensions as one. With positions flattened the weight's gradient contracts a
    single dimension. Contracting rows and positions apart, XLA would transpose the activations first, at several
    times the product's own cost on CPU.
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, Turned):
        flat = turned_product(rows, weight.matrix.astype(x.dtype)).astype(x.dtype)
    else:
        flat = rows @ weight.reshape(x.shape[-1], -1).astype(x.dtype)
    return flat.reshape(*x.shape[:-1], *weight.shape[summed:])


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + ε) · scale, in float32 up to the end (arXiv 1910.07467); with an offset, · (1 + scale)."""

    def __init__(self, width: int, epsilon: float, offset: bool = False):
        fresh = jnp.zeros if offset else jnp.ones
        self.scale = named_weight(fresh((width,), jnp.float32), ("norm",))
        self.epsilon = epsilon
        self.offset = offset

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale.get_value().astype(jnp.float32)
        return (wide * inverse * (1.0 + scale if self.offset else scale)).astype(x.dtype)
