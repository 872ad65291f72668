"""How the next token is chosen from logits, and when it ends a response. Knows no model, no cache, no text.

Randomness is addressed: a token's key is a function of (run seed, step, purpose, sequence id, position), or, of a
request with a seed of its own, of (that seed, purpose, position); so the tokens of a sequence do not depend on the
batch, the slot, the order, the mesh or the placement it was generated in.
A token has two log-probs: of the model's distribution at the temperature, which training sees again, and of the
distribution that was sampled from, where a minimum length, top-k, top-p and min-p have cut tokens away.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_CUT = -jnp.inf  # logit of a token that truncation removed
# The vocabulary is drawn from in two stages, one of so many blocks and then a token of it: V/64 + 64 random numbers
# in place of V. Tables are padded to multiples of 64, so that a block lies on one device.
_BLOCKS = 64


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Static: a compiled program holds it."""

    temperature: float  # 0: greedy; log-probs are then those of the untempered distribution
    top_k: int  # keep the k most likely tokens; 0: off
    top_p: float  # keep the fewest tokens whose probabilities reach p (arXiv 1904.09751); 1: off
    # Keep tokens at least so likely as this times the most likely one (arXiv 2407.01082); 0: off
    min_p: float
    min_response_tokens: int  # so many tokens are drawn before one may end the response; 0: the first may
    max_response_tokens: int  # end token included
    end_ids: tuple[int, ...]  # a response ends with the first of these; empty: only at the limit
    pad_id: int

    @property
    def truncates(self) -> bool:
        """Return whether tokens can be drawn from another distribution than the model's at the temperature."""
        suppresses = self.min_response_tokens > 0 and len(self.end_ids) > 0
        return suppresses or self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def untruncated(tokens: int) -> Sampling:
    """Return sampling from the whole distribution at temperature 1, which so many tokens end and nothing else."""
    return Sampling(
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        min_response_tokens=0,
        max_response_tokens=tokens,
        end_ids=(),
        pad_id=0,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StopTable:
    """An automaton over tokens that notices when one completes a stop string; a response starts in state 0."""

    # int16 or int32: where token v leads from state q; ~q' where a stop string was completed on the way to q'.
    transitions: Int[Array, "Q V"]


def sequence_keys(
    seed: int, step: int, purpose: int, sequence_ids: Int[Array, "B"], own_seeds: Int[Array, "B"]
) -> Array:
    """Return one key per sequence: fold(fold(fold(seed, step), purpose), sequence id).

    A sequence with an own seed, 0 or above, has fold(own seed, purpose): the same in every step of every run.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, sequence_ids)
    own = jax.vmap(lambda own_seed: jax.random.fold_in(jax.random.key(own_seed), purpose))(own_seeds)
    return jnp.where(jnp.asarray(own_seeds) >= 0, own, keys)


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


def keep_min_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Cut tokens less likely than p times the most likely one: logits below the largest plus ln p."""
    threshold = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(jnp.float32(p))
    return jnp.where(logits >= threshold, logits, _CUT)


def _suppress_ends(
    logits: Float[Array, "B V"], drawn: Int[Array, "B"], sampling: Sampling
) -> Float[Array, "B V"]:
    """Cut the end tokens of rows that are too short to end."""
    ends = jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(sampling.end_ids, jnp.int32)].set(True)
    return jnp.where(ends & (drawn < sampling.min_response_tokens)[:, None], _CUT, logits)


def _truncated(
    tempered: Float[Array, "B V"], drawn: Int[Array, "B"], sampling: Sampling
) -> Float[Array, "B V"]:
    """Cut what may not be drawn, each rule judging what those before it left."""
    logits = tempered
    if sampling.min_response_tokens > 0 and sampling.end_ids:
        logits = _suppress_ends(logits, drawn, sampling)
    if sampling.top_k > 0:
        logits = keep_top_k(logits, min(sampling.top_k, logits.shape[-1]))
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def _block_weights(
    logits: Float[Array, "B V"],
) -> tuple[Float[Array, "B M V/M"], Float[Array, "B M"]]:
    """Return the logits by blocks, and each block's log Σ exp."""
    rows, vocabulary = logits.shape
    blocks = _BLOCKS if vocabulary % _BLOCKS == 0 else 1
    parted = logits.reshape(rows, blocks, vocabulary // blocks)
    return parted, jax.nn.logsumexp(parted, axis=-1)


def _largest(x: Float[Array, "B V"]) -> Int[Array, "B"]:
    """Return the first place of each row's maximum: two plain reductions, which CPUs do faster than one of pairs."""
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    highest = jnp.max(x, axis=-1, keepdims=True)
    return jnp.min(jnp.where(x == highest, places, x.shape[-1] - 1), axis=-1)


def _draw(
    parted: Float[Array, "B M V/M"],
    weights: Float[Array, "B M"],
    keys: Array,
    positions: Int[Array, "B"],
) -> Int[Array, "B"]:
    """Draw a block, then a token of it, by the Gumbel-max trick: P = e^weight/Σ · e^logit/e^weight = softmax."""
    count, width = parted.shape[1:]
    token_keys = jax.vmap(jax.random.fold_in)(keys, positions)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (count + width,), jnp.float32))(token_keys)
    block = _largest(weights + noise[:, :count])
    inside = jnp.take_along_axis(parted, block[:, None, None], axis=1)[:, 0]
    return block * width + _largest(inside + noise[:, count:])


def sample(
    logits: Float[Array, "B V"],
    keys: Array,
    positions: Int[Array, "B"],
    drawn: Int[Array, "B"],
    sampling: Sampling,
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """Draw one token per row, of which `drawn` tokens of its response are there already.

    Returns the tokens (int32), their log-probs at the temperature before truncation, and their log-probs in the
    distribution that was sampled from: the end tokens of short rows cut, then top-k, then top-p of what top-k left,
    then min-p of what top-p left.
    """
    greedy = sampling.temperature == 0
    tempered = logits if greedy else logits / sampling.temperature
    truncated = _truncated(tempered, drawn, sampling)
    parted, weights = _block_weights(truncated)
    tokens = _largest(truncated) if greedy else _draw(parted, weights, keys, positions)

    def chosen(of: Float[Array, "B V"]) -> Float[Array, "B"]:
        return jnp.take_along_axis(of, tokens[:, None], axis=-1)[:, 0]

    behaviour = chosen(truncated) - jax.nn.logsumexp(weights, axis=-1)
    if not sampling.truncates:
        return tokens, behaviour, behaviour
    return tokens, chosen(tempered) - jax.nn.logsumexp(tempered, axis=-1), behaviour


def ends(
    tokens: Int[Array, "B"],
    drawn: Int[Array, "B"],
    states: Int[Array, "B"],
    sampling: Sampling,
    stops: StopTable | None,
) -> tuple[Bool[Array, "B"], Int[Array, "B"]]:
    """Return which rows end with the token just drawn, and the automaton's states behind it.

    `drawn` counts each response's tokens before this one; a row ends with an end token or with the token that
    completes a stop string, if at least `min_response_tokens` stand before it. Without stop strings states stay.
    """
    over = jnp.isin(tokens, jnp.asarray(sampling.end_ids, jnp.int32)) if sampling.end_ids else False
    if stops is not None:
        after = stops.transitions[states, tokens].astype(jnp.int32)
        over = over | (after < 0)
        states = jnp.where(after < 0, ~after, after)
    return over & (drawn >= sampling.min_response_tokens), states
