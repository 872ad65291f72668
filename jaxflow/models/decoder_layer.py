"""One decoder layer: attention, then a gated MLP or a mixture of experts. Knows no mesh and no cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxflow.models.adapters import ATTENTION_TARGETS, MLP_TARGETS, Adapter, Adapters, adapters_beside
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.experts import ExpertWeights, Routing
from jaxflow.models.layers import (
    AttentionRule,
    RMSNorm,
    Surroundings,
    Turned,
    named_weight,
    project,
    random_weight,
)
from jaxflow.models.rotary import Angles, rotate

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer stands: what all its heads share."""

    angles: Angles
    local: bool | Bool[Array, ""]  # whether it sees its sliding window only


def _projected(
    x: Float[Array, "*B D"], weight: Float[Array, "*D *F"] | Turned, adapter: Adapter | None, summed: int = 1
):
    """Return the product with a weight, over its first `summed` dimensions, and what its adapter adds."""
    product = project(x, weight, summed)
    return product if adapter is None else product + adapter(x)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions (arXiv 2305.13245).

    Of the N' query heads the last ones of each key/value group may be padding: what they mix is masked away, so
    that weights of zeros get gradients of zeros and stay so.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, adapters: Adapters | None = None):
        d, n, k, h = config.width, config.padded_heads, config.kv_heads, config.head_width
        scale = d**-0.5
        self.query = random_weight(rngs, (d, n, h), ("embed", "heads", None), scale)
        self.key = random_weight(rngs, (d, k, h), ("embed", "kv_heads", None), scale)
        self.value = random_weight(rngs, (d, k, h), ("embed", "kv_heads", None), scale)
        spread = (config.heads * h * 2 * config.layers) ** -0.5
        self.output = random_weight(rngs, (n, h, d), ("heads", None, "embed"), spread)
        if config.head_padding > 0:
            real = _real_heads(config)
            self.query.set_value(self.query.get_value() * real[:, None])
            self.output.set_value(self.output.get_value() * real[:, None, None])
        if config.attention_bias:
            self.query_bias = named_weight(jnp.zeros((n, h), jnp.float32), ("heads", None))
            self.key_bias = named_weight(jnp.zeros((k, h), jnp.float32), ("kv_heads", None))
            self.value_bias = named_weight(jnp.zeros((k, h), jnp.float32), ("kv_heads", None))
        if config.query_key_norm:
            self.query_norm = RMSNorm(h, config.norm_epsilon, config.norm_offset)
            self.key_norm = RMSNorm(h, config.norm_epsilon, config.norm_offset)
        beside = adapters_beside({name: vars(self)[name] for name in ATTENTION_TARGETS}, adapters, rngs)
        self.query_adapter, self.key_adapter, self.value_adapter, self.output_adapter = beside
        self.config = config

    def _heads(self, x: Float[Array, "B T D"], around: Surroundings):
        """Return queries, keys and values before they are turned."""
        weights = (
            (self.query, self.query_adapter),
            (self.key, self.key_adapter),
            (self.value, self.value_adapter),
        )
        names = ("heads", "kv_heads", "kv_heads")
        heads = [_projected(x, weight.get_value(), adapter) for weight, adapter in weights]
        if self.config.attention_bias:
            biases = (self.query_bias, self.key_bias, self.value_bias)
            heads = [one + bias.get_value().astype(x.dtype) for one, bias in zip(heads, biases, strict=True)]
        queries, keys, values = (
            around.constrain(one, ("batch", None, name, None)) for one, name in zip(heads, names, strict=True)
        )
        if self.config.query_key_norm:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        return queries, keys, values

    def __call__(self, x: Float[Array, "B T D"], place: Place, carry: Any, around: Surroundings):
        config = self.config
        queries, keys, values = self._heads(x, around)
        rule = AttentionRule(
            config.score_divisor**-0.5, config.attention_softcap, config.sliding_window, place.local
        )
        mixed, carry = around.attend(
            rotate(queries, place.angles), rotate(keys, place.angles), values, rule, carry
        )
        if config.head_padding > 0:
            mixed = mixed * _real_heads(config)[:, None].astype(mixed.dtype)
        mixed = mixed.reshape(*mixed.shape[:-2], -1)
        return _projected(mixed, self.output.get_value(), self.output_adapter, summed=2), carry


def _real_heads(config: DecoderConfig) -> Float[Array, "N'"]:
    """Return 1 for each query head that is not padding, 0 for the others."""
    group = config.padded_heads // config.kv_heads
    real = jnp.arange(config.padded_heads) % group < config.heads // config.kv_heads
    return real.astype(jnp.float32)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) · up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, adapters: Adapters | None):
        d, f = config.width, config.mlp_width
        self.gate = random_weight(rngs, (d, f), ("embed", "mlp"), d**-0.5)
        self.up = random_weight(rngs, (d, f), ("embed", "mlp"), d**-0.5)
        self.down = random_weight(rngs, (f, d), ("mlp", "embed"), (f * 2 * config.layers) ** -0.5)
        beside = adapters_beside({name: vars(self)[name] for name in MLP_TARGETS}, adapters, rngs)
        self.gate_adapter, self.up_adapter, self.down_adapter = beside
        self.activation = config.activation

    def __call__(self, x: Float[Array, "B T D"], around: Surroundings) -> tuple[Float[Array, "B T D"], None]:
        gate = _projected(x, self.gate.get_value(), self.gate_adapter)
        up = _projected(x, self.up.get_value(), self.up_adapter)
        gate, up = (around.constrain(one, ("batch", None, "mlp")) for one in (gate, up))
        down = _projected(ACTIVATIONS[self.activation](gate) * up, self.down.get_value(), self.down_adapter)
        return down, None


class MixtureOfExperts(nnx.Module):
    """E gated MLPs of which each token goes through the k that a router finds most probable (arXiv 1701.06538)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        d, f, e = config.width, config.mlp_width, config.experts
        self.router = random_weight(rngs, (d, e), ("embed", None), d**-0.5)
        self.gate = random_weight(rngs, (e, d, f), ("experts", "embed", "mlp"), d**-0.5)
        self.up = random_weight(rngs, (e, d, f), ("experts", "embed", "mlp"), d**-0.5)
        spread = (f * 2 * config.layers) ** -0.5
        self.down = random_weight(rngs, (e, f, d), ("experts", "mlp", "embed"), spread)
        self.routing = Routing(
            config.experts_per_token, config.normalize_routing, ACTIVATIONS[config.activation]
        )

    def __call__(self, x: Float[Array, "B T D"], around: Surroundings):
        """Return the experts' mixed results, and what is noted of each token's routing where somebody asks."""
        weights = ExpertWeights(self.gate.get_value(), self.up.get_value(), self.down.get_value())
        logits, notes = project(x, self.router.get_value()), around.routing_notes
        noted = None if notes is None else notes.note(logits, self.routing)
        return around.mix_experts(x, logits, weights, self.routing), noted


class DecoderLayer(nnx.Module):
    """One decoder layer: a norm before attention and before the MLP, and behind them where the family has it."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, adapters: Adapters | None):
        def norm() -> RMSNorm:
            return RMSNorm(config.width, config.norm_epsilon, config.norm_offset)

        self.attention_norm = norm()
        self.attention = Attention(config, rngs, adapters)
        self.mlp_norm = norm()
        self.mlp = MixtureOfExperts(config, rngs) if config.experts > 0 else GatedMLP(config, rngs, adapters)
        if config.post_norms:
            self.attention_post_norm, self.mlp_post_norm = norm(), norm()
        self.post_norms = config.post_norms

    def __call__(self, x: Float[Array, "B T D"], place: Place, carry: Any, around: Surroundings):
        mixed, carry = self.attention(self.attention_norm(x), place, carry, around)
        mixed = self.attention_post_norm(mixed) if self.post_norms else mixed
        x = around.constrain(x + mixed, ("batch", None, None))
        made, noted = self.mlp(self.mlp_norm(x), around)
        made = self.mlp_post_norm(made) if self.post_norms else made
        return around.constrain(x + made, ("batch", None, None)), carry, noted
