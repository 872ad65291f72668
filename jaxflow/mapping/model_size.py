"""How large a model is, in the numbers that the terms of the cost model need. Knows no device and no layout."""

from __future__ import annotations

import dataclasses
import functools

from jaxflow.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Sizes that follow from a decoder and what it ends in."""

    decoder: DecoderConfig
    parameters: int  # all
    vectors: int  # of these, in norms and scalar heads: whole on every device
    # Weights of one layer that a token is multiplied with: of experts, those it is sent to
    layer_products: int
    layer_weights: int  # of one layer, all experts, those that layouts cut
    layer_experts: int  # of these, in experts: cut over the ranks of `expert` too
    head_products: int  # D·V, or D where the model ends in one number
    rollout_read: int  # weights that a decode step reads: all but an untied embedding table

    @property
    def layers(self) -> int:
        """Return L."""
        return self.decoder.layers

    @property
    def matrices(self) -> int:
        """Count the parameters that layouts cut."""
        return self.parameters - self.vectors

    def share(self, ways: int, expert: int) -> float:
        """Return the weights of a device that has 1 / ways of each matrix, and of experts 1 / expert of that."""
        in_experts = self.layers * self.layer_experts
        return (self.matrices - in_experts) / ways + in_experts / (ways * expert) + self.vectors

    def layer_share(self, ways: int, expert: int) -> float:
        """Return of one layer what `share` returns of all, vectors left out."""
        return (self.layer_weights - self.layer_experts) / ways + self.layer_experts / (ways * expert)

    @property
    def products(self) -> int:
        """Count the weights that a token is multiplied with, N_ne."""
        return self.layers * self.layer_products + self.head_products

    @property
    def cached_numbers(self) -> int:
        """Count the numbers that one token leaves in the key/value cache: 2·L·K·H."""
        return 2 * self.layers * self.decoder.kv_heads * self.decoder.head_width


@functools.lru_cache(maxsize=256)
def model_size(decoder: DecoderConfig, tokens_head: bool) -> ModelSize:
    """Measure a decoder that ends in a distribution over tokens, or in one number."""
    d, h, k = decoder.width, decoder.head_width, decoder.kv_heads
    mlp, attention = 3 * d * decoder.mlp_width, 2 * d * h * (decoder.padded_heads + k)
    layer_products = layer_weights = attention + mlp
    layer_experts = 0
    if decoder.experts > 0:
        router = d * decoder.experts
        layer_products = attention + mlp * decoder.experts_per_token + router
        layer_weights = attention + mlp * decoder.experts + router
        layer_experts = mlp * decoder.experts
    table = decoder.padded_vocabulary_size * d
    if tokens_head:
        parameters = decoder.parameter_count
    else:
        parameters = dataclasses.replace(decoder, tied_embeddings=True).parameter_count + d
    norms = (4 if decoder.post_norms else 2) * d + (2 * h if decoder.query_key_norm else 0)
    vectors = norms * decoder.layers + (1 if tokens_head else 2) * d
    return ModelSize(
        decoder=decoder,
        parameters=parameters,
        vectors=vectors,
        layer_products=layer_products,
        layer_weights=layer_weights,
        layer_experts=layer_experts,
        head_products=table if tokens_head else d,
        rollout_read=parameters if decoder.tied_embeddings else parameters - table,
    )
