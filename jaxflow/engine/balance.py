"""The load of a mixture's experts over a whole mini-batch, and the loss that evens it out.

L = E · Σ_e f_e · P_e, with f_e how often a token goes to expert e, and P_e how probable the router finds e, both means
over all tokens of the mini-batch in all layers. f is a constant of the policy and known before the pass that learns,
so that the loss adds up over micro-batches and devices, and its value depends on neither.

Switch Transformers, arXiv:2101.03961 (eq. 4), for k experts per token and layers taken together as Hugging Face's
`load_balancing_loss_func` does. Knows routers' logits; no model, no algorithm.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.experts import choice_counts, expected_load
from jaxflow.models.layers import RoutingNotes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Load:
    """How the tokens of a whole mini-batch spread over the experts."""

    choices: Int[Array, "E"]  # int32, times that a counted token goes to each expert, over all layers
    tokens: Int[Array, ""]  # int32, counted tokens


def counted(response_mask: Bool[Array, "B *N T"]) -> Bool[Array, "B *N T"]:
    """Return which tokens count: up to the last one that is learnt from; none of a row without any."""
    behind = jnp.cumsum(response_mask[..., ::-1], axis=-1)[..., ::-1]
    return behind > 0


def counted_tokens(response_mask: Bool[np.ndarray, "b *N T"]) -> Int[np.ndarray, "b"]:
    """Return how many tokens of each row count, on the host."""
    length = response_mask.shape[-1]
    last = np.where(response_mask.any(axis=-1), length - np.argmax(response_mask[..., ::-1], axis=-1), 0)
    return last.reshape(len(last), -1).sum(axis=1, dtype=np.int32)


def choice_notes(config: DecoderConfig) -> RoutingNotes:
    """Return notes of where each token goes."""
    return RoutingNotes(choice_counts, (config.experts,))


def choices(noted: Float[Array, "B *N T E"], response_mask: Bool[Array, "B *N T"]) -> Int[Array, "E"]:
    """Return how often each expert is chosen by the tokens that count: whole numbers, the same in any order."""
    noted = jnp.where(counted(response_mask)[..., None], noted, 0.0)
    return jnp.sum(noted, axis=tuple(range(noted.ndim - 1)), dtype=jnp.int32)


def load_notes(load: Load, config: DecoderConfig) -> RoutingNotes:
    """Return notes of how loaded the experts are that each token leans to."""
    often = load.choices / (config.layers * load.tokens)
    return RoutingNotes(lambda logits, routing: expected_load(logits, often), ())


def balance_loss(
    noted: Float[Array, "B *N T"], response_mask: Bool[Array, "B *N T"], load: Load, config: DecoderConfig
) -> Float[Array, ""]:
    """Return this micro-batch's share of the loss, which is k where all experts are equally probable."""
    total = jnp.sum(jnp.where(counted(response_mask), noted, 0.0))
    return config.experts * total / (config.layers * load.tokens)
