"""The parts of a decoder block: norms, rotary positions, attention projections, gated MLP.

Knows no mesh and no cache: how queries meet keys, how activations are laid out and where layers run are functions
handed in (`Surroundings`). Weights carry logical axis names; tables elsewhere say which mesh axes those are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxflow.models.decoder_config import DecoderConfig

Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""(queries [B,T,N,H], keys [B,T,K,H], values [B,T,K,H], carry) -> (mixed values [B,T,N,H], carry)."""

Constrain = Callable[[Array, Sequence[str | None]], Array]
"""(activation, one logical name or None per dimension) -> the same activation, its layout bound."""

Block = Callable[[Array, Any], Array]
"""(activation [B,T,D], one layer's weights) -> activation: a decoder layer as the functions below see it."""

OverLayers = Callable[[Block, Array, Any], Array]
"""(block, activation [B,T,D], all layers' weights stacked on a leading axis) -> the activation after the last one."""


def scan_layers(block: Block, x: Float[Array, "B T D"], stacked: Any) -> Float[Array, "B T D"]:
    """Run the layers one after the other where they lie: one compiled block, scanned."""
    return jax.lax.scan(lambda x, weights: (block(x, weights), None), x, stacked)[0]


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a decoder runs in: all that depends on a mesh or a cache, so that the model knows neither."""

    attend: Attend
    constrain: Constrain
    over_layers: OverLayers = scan_layers  # of whole sequences; layers with a carry are unrolled


def rotary_angles(
    positions: Int[Array, "B T"], head_width: int, theta: float
) -> tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]:
    """Return cosine and sine of position · θ^(−2i/H), float32 (RoFormer, arXiv 2104.09864)."""
    frequencies = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    heads: Float[Array, "B T N H"], angles: tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]
) -> Float[Array, "B T N H"]:
    """Rotate each pair (i, i + H/2) of a head by its angle: the half-split convention of Llama weights."""
    cosine, sine = angles
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(heads.dtype)


def named_weight(value: Float[Array, "..."], names: Sequence[str | None]) -> nnx.Param:
    """Return a weight that bears a logical name per dimension, or None."""
    # Eager sharding would place each weight whole on one device first; they are born sharded under jit.
    return nnx.Param(value, out_sharding=tuple(names), eager_sharding=False)


def _weight(rngs: nnx.Rngs, shape: Sequence[int], names: Sequence[str | None], scale: float) -> nnx.Param:
    return named_weight(scale * jax.random.normal(rngs.params(), tuple(shape), jnp.float32), names)


def project(x: Float[Array, "*B D"], weight: Float[Array, "D *F"]) -> Float[Array, "*B *F"]:
    """Multiply by a weight in the activation's dtype, as one two-dimensional product.

    With positions flattened the weight's gradient contracts a single dimension. Contracting rows and positions
    apart, XLA would transpose the activations first, at several times the product's own cost on CPU.
    """
    flat = x.reshape(-1, x.shape[-1]) @ weight.reshape(weight.shape[0], -1).astype(x.dtype)
    return flat.reshape(*x.shape[:-1], *weight.shape[1:])


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + ε) · scale, the mean in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, epsilon: float):
        self.scale = named_weight(jnp.ones((width,), jnp.float32), ("norm",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * self.scale.get_value().astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions (arXiv 2305.13245)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        d, n, k, h = config.width, config.heads, config.kv_heads, config.head_width
        scale = d**-0.5
        self.query = _weight(rngs, (d, n, h), ("embed", "heads", None), scale)
        self.key = _weight(rngs, (d, k, h), ("embed", "kv_heads", None), scale)
        self.value = _weight(rngs, (d, k, h), ("embed", "kv_heads", None), scale)
        self.output = _weight(rngs, (n, h, d), ("heads", None, "embed"), (n * h * 2 * config.layers) ** -0.5)

    def __call__(self, x, angles, carry, around: Surroundings):
        def heads(weight: nnx.Param, name: str):
            return around.constrain(project(x, weight.get_value()), ("batch", None, name, None))

        queries = rotate(heads(self.query, "heads"), angles)
        keys = rotate(heads(self.key, "kv_heads"), angles)
        mixed, carry = around.attend(queries, keys, heads(self.value, "kv_heads"), carry)
        n, h, d = self.output.shape
        output = self.output.get_value().reshape(n * h, d)
        return project(mixed.reshape(*mixed.shape[:-2], n * h), output), carry


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) · up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        d, f = config.width, config.mlp_width
        self.gate = _weight(rngs, (d, f), ("embed", "mlp"), d**-0.5)
        self.up = _weight(rngs, (d, f), ("embed", "mlp"), d**-0.5)
        self.down = _weight(rngs, (f, d), ("mlp", "embed"), (f * 2 * config.layers) ** -0.5)

    def __call__(self, x: Float[Array, "B T D"], around: Surroundings) -> Float[Array, "B T D"]:
        gate = around.constrain(project(x, self.gate.get_value()), ("batch", None, "mlp"))
        up = around.constrain(project(x, self.up.get_value()), ("batch", None, "mlp"))
        return project(jax.nn.silu(gate) * up, self.down.get_value())


class DecoderLayer(nnx.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = GatedMLP(config, rngs)

    def __call__(self, x, angles, carry, around: Surroundings):
        mixed, carry = self.attention(self.attention_norm(x), angles, carry, around)
        x = around.constrain(x + mixed, ("batch", None, None))
        x = around.constrain(x + self.mlp(self.mlp_norm(x), around), ("batch", None, None))
        return x, carry
