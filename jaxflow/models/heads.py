"""What a decoder ends in: a distribution over tokens, or one number. Knows no loss and no sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.layers import named_weight, turned_product

# Of vocabulary rows that exist only to make the table divisible; finite keeps 0 · logit finite
PADDING_LOGIT = -1e30


class TokenHead(nnx.Module):
    """Logits over the vocabulary, from its own matrix or from the transposed embedding table."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        if not config.tied_embeddings:
            shape = (config.width, config.padded_vocabulary_size)
            matrix = config.width**-0.5 * jax.random.normal(rngs.params(), shape, jnp.float32)
            self.matrix = named_weight(matrix, ("embed", "vocabulary"))
        self.config = config

    def __call__(self, hidden: Float[Array, "*B D"], table: Float[Array, "V D"]) -> Float[Array, "*B V"]:
        if self.config.tied_embeddings:
            flat = turned_product(hidden.reshape(-1, hidden.shape[-1]), table.astype(hidden.dtype))
            logits = flat.reshape(*hidden.shape[:-1], -1)
        else:
            matrix = self.matrix.get_value().astype(hidden.dtype)
            logits = jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32)
        if self.config.logit_softcap > 0.0:
            logits = self.config.logit_softcap * jnp.tanh(logits / self.config.logit_softcap)
        real = jnp.arange(logits.shape[-1]) < self.config.vocabulary_size
        return jnp.where(real, logits, PADDING_LOGIT)


class ScalarHead(nnx.Module):
    """One number per hidden state. It starts at zero: a fresh critic predicts nothing rather than noise."""

    def __init__(self, config: DecoderConfig):
        self.weight = named_weight(jnp.zeros((config.width,), jnp.float32), ("norm",))

    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
        weight = self.weight.get_value().astype(jnp.float32)
        return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), weight)
