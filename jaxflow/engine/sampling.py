"""How the next token is chosen from logits. Knows no model, no cache, no text.

Randomness is addressed: a token's key is a function of (run seed, step, purpose, sequence id, position), so the
tokens of a sequence do not depend on the batch, the order, the mesh or the placement it was generated in.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_CUT = -jnp.inf  # logit of a token that truncation removed


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Static: a compiled program holds it."""

    temperature: float  # 0: greedy; log-probs are then those of the untempered distribution
    top_k: int  # keep the k most likely tokens; 0: off
    top_p: float  # keep the fewest tokens whose probabilities reach p (arXiv 1904.09751); 1: off
    max_response_tokens: int  # end token included
    end_ids: tuple[int, ...]  # a response ends with the first of these; empty: only at the limit
    pad_id: int


def sequence_keys(seed: int, step: int, purpose: int, sequence_ids: Int[Array, "B"]) -> Array:
    """Return one key per sequence: fold(fold(fold(seed, step), purpose), sequence id)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, sequence_ids)


def keep_top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Cut all but the k largest logits (ties with the k-th stay)."""
    threshold = jax.lax.top_k(logits, k)[0][:, -1:]
    return jnp.where(logits >= threshold, logits, _CUT)


def keep_top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Cut the least likely tokens while those left hold at least probability p (ties stay together).

    The threshold probability is found by bisection on the ordered bits of non-negative floats: 31 masked sums
    over the vocabulary, exact, and no sort.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def halve(bounds, _):
        low, high = bounds  # kept(low) ≥ p > kept(high)
        middle = low + (high - low) // 2
        kept = jnp.sum(jnp.where(bits >= middle, probabilities, 0.0), axis=-1, keepdims=True)
        return (jnp.where(kept >= p, middle, low), jnp.where(kept >= p, high, middle)), None

    low = jnp.zeros((logits.shape[0], 1), jnp.int32)
    high = jnp.full_like(low, jax.lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32))
    (threshold, _), _ = jax.lax.scan(halve, (low, high), None, length=31)
    # Rounding can leave the whole sum a hair below p: then the threshold is 0 and nothing is cut.
    return jnp.where(bits >= threshold, logits, _CUT)


def sample(
    logits: Float[Array, "B V"], keys: Array, positions: Int[Array, "B"], sampling: Sampling
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """Draw one token per row.

    Returns the tokens, their log-probs at the temperature before truncation, and their log-probs in the
    distribution that was sampled from (after top-k, then top-p of what top-k left).
    """
    greedy = sampling.temperature == 0
    tempered = logits if greedy else logits / sampling.temperature
    truncated = tempered
    if sampling.top_k > 0:
        truncated = keep_top_k(truncated, min(sampling.top_k, logits.shape[-1]))
    if sampling.top_p < 1:
        truncated = keep_top_p(truncated, sampling.top_p)
    if greedy:
        tokens = jnp.argmax(tempered, axis=-1)
    else:
        token_keys = jax.vmap(jax.random.fold_in)(keys, positions)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32))(token_keys)
        tokens = jnp.argmax(truncated + noise, axis=-1)

    def log_prob(of: Float[Array, "B V"]) -> Float[Array, "B"]:
        return jnp.take_along_axis(of, tokens[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(of, axis=-1)

    tempered_log_prob = log_prob(tempered)
    untruncated = sampling.top_k == 0 and sampling.top_p >= 1
    return (
        tokens.astype(jnp.int32),
        tempered_log_prob,
        tempered_log_prob if untruncated else log_prob(truncated),
    )
