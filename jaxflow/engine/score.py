"""One forward pass over given sequences: token log-probs and entropy, or one number per position.

Knows no sampling, no loss, no algorithm. The traced functions here are shared with training, so what is
trained on is what is scored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Traced
from jaxtyping import Array, Float, Int

from jaxflow.engine import attention
from jaxflow.engine.batching import plan_micro_batches, scatter, sequences_per_row, take
from jaxflow.engine.experts import experts_over
from jaxflow.engine.pipeline import inside_stages, over_stages
from jaxflow.engine.rows import Rows
from jaxflow.engine.sharding import Layout
from jaxflow.models.layers import RoutingNotes, Surroundings
from jaxflow.models.transformer import LanguageModel, Model, Params, ScalarModel
from jaxflow.types import TokenLogProbs

_LOGIT_CHUNK_ELEMENTS = 1 << 24  # logits alive at once on one device: 64 MiB of float32


def hidden_states(
    module: LanguageModel | ScalarModel,
    tokens: Int[Array, "B T"],
    layout: Layout,
    notes: RoutingNotes | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T *E"] | None]:
    """Run the decoder over right-padded sequences; say also what of a mixture's routing was to be noted."""
    attend = attention.whole_sequence(layout.mesh.devices.flat[0].platform)
    inside = inside_stages(layout)
    of_blocks = Surroundings(attend, inside.constrain, mix_experts=experts_over(inside), routing_notes=notes)
    around = Surroundings(attend, layout.constrain, over_stages(layout), of_blocks=of_blocks)
    return module.backbone.with_notes(tokens, around)


def _positions_per_chunk(rows_per_device: int, length: int, vocabulary_per_device: int) -> int:
    """Return the largest divisor of the length whose logits fit the chunk."""
    most = max(1, _LOGIT_CHUNK_ELEMENTS // (rows_per_device * vocabulary_per_device))
    return max(d for d in range(1, length + 1) if length % d == 0 and d <= most)


def token_log_probs(
    model: Model,
    params: Params,
    tokens: Int[Array, "B *N T"],
    temperature: float,
    layout: Layout,
    reference: Params | None = None,
) -> TokenLogProbs:
    """Compute what `noted_log_probs` does, of a model whose routing nobody asks about."""
    return noted_log_probs(model, params, tokens, temperature, layout, reference, None)[0]


def noted_log_probs(
    model: Model,
    params: Params,
    tokens: Int[Array, "B *N T"],
    temperature: float,
    layout: Layout,
    reference: Params | None,
    notes: RoutingNotes | None,
) -> tuple[TokenLogProbs, Float[Array, "B *N T"] | None]:
    """Compute log softmax(logits/τ) of each token and the entropy there, never holding [B, T, V].

    A row may hold N sequences [B, N, T], which have nothing to do with each other here.

    `log_probs[t]` and `entropy[t]` belong to token t given the tokens before it; both are 0 at t = 0. The
    vocabulary's logits exist for a chunk of positions at a time and are recomputed in the backward pass.

    With the weights of a reference, of the model without adapters, also KL(π ‖ π_ref) = Σ_v π·(log π − log π_ref)
    at each position, exactly and at the same temperature: a second forward pass, and both logits of a chunk at once.

    Beside that what of a mixture's routing was to be noted of each token, else None.
    """
    module, shape = model.bind(params), tokens.shape
    tokens = tokens.reshape(-1, shape[-1])
    hidden, noted = hidden_states(module, tokens, layout, notes)
    frozen = None if reference is None else model.base.bind(reference)
    compared = () if frozen is None else (hidden_states(frozen, tokens, layout)[0],)
    rows, length, _ = hidden.shape
    vocabulary_ways = int(np.prod([layout.mesh.shape[axis] for axis in layout.axes["vocabulary"]]))
    chunk = _positions_per_chunk(
        (1 + len(compared)) * -(-rows // layout.replicas),
        length,
        model.config.padded_vocabulary_size // vocabulary_ways,
    )
    # The last position predicts nothing; it rides along so that the length keeps its divisors.
    targets = jnp.roll(tokens, -1, axis=1)

    @jax.checkpoint
    def chunk_log_probs(target_chunk, hidden_chunk, *compared_chunk):
        logits = module.logits(hidden_chunk) / temperature
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, target_chunk[..., None], axis=-1)[..., 0]
        # −Σ p log p term by term: log Z − Σ p·logit would cancel where logits are large.
        log_probs = logits - normaliser[..., None]
        said = chosen - normaliser, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
        if frozen is None:
            return said
        other = jax.nn.log_softmax(frozen.logits(compared_chunk[0]) / temperature, axis=-1)
        return *said, jnp.sum(jnp.exp(log_probs) * (log_probs - other), axis=-1)

    said = _over_chunks(chunk_log_probs, (targets, hidden, *compared), chunk)

    def shifted(x):
        return jnp.pad(x[:, :-1], ((0, 0), (1, 0))).reshape(shape)

    return TokenLogProbs(*map(shifted, said)), None if noted is None else noted.reshape(shape)


def _over_chunks(
    compute: Callable[..., tuple[Array, ...]], arrays: tuple[Array, ...], chunk: int
) -> tuple[Float[Array, "B T"], ...]:
    """Compute something of each position of arrays [B, T, …], `chunk` positions at a time."""
    rows, length = arrays[0].shape[:2]
    if chunk == length:
        return compute(*arrays)
    chunks = [x.reshape(rows, length // chunk, chunk, *x.shape[2:]).swapaxes(0, 1) for x in arrays]
    _, said = jax.lax.scan(lambda _, xs: (None, compute(*xs)), None, chunks)
    return tuple(x.swapaxes(0, 1).reshape(rows, length) for x in said)


def token_values(
    model: Model, params: Params, tokens: Int[Array, "B *N T"], layout: Layout
) -> Float[Array, "B *N T"]:
    """Compute V_t, the estimate made before token t is chosen (from the hidden state of token t − 1)."""
    return noted_values(model, params, tokens, layout, None)[0]


def noted_values(
    model: Model,
    params: Params,
    tokens: Int[Array, "B *N T"],
    layout: Layout,
    notes: RoutingNotes | None,
) -> tuple[Float[Array, "B *N T"], Float[Array, "B *N T"] | None]:
    """Compute what `token_values` does, and what of a mixture's routing was to be noted of each token, else None."""
    module, shape = model.bind(params), tokens.shape
    hidden, noted = hidden_states(module, tokens.reshape(-1, shape[-1]), layout, notes)
    values = jnp.pad(module.scalars(hidden)[:, :-1], ((0, 0), (1, 0))).reshape(shape)
    return values, None if noted is None else noted.reshape(shape)


class Scorer:
    """Scores host batches on a mesh in token-budget micro-batches; a process gives and gets its own rows."""

    def __init__(self, model: Model, layout: Layout, tokens_per_device: int, temperature: float):
        self._tokens_per_device = tokens_per_device
        self._rows = Rows(layout.mesh, layout.axes["batch"])

        @functools.partial(jax.jit, out_shardings=layout.sharding(("batch",)))
        def score(params: Params, tokens: Array, reference: Params | None = None) -> TokenLogProbs | Array:
            if model.kind is LanguageModel:
                return token_log_probs(model, params, tokens, temperature, layout, reference)
            return token_values(model, params, tokens, layout)

        self._score = score

    def trace(self, params: Params, tokens: jax.ShapeDtypeStruct) -> Traced:
        """Trace the program of a pass for arrays of these shapes; none need exist."""
        return self._score.trace(params, tokens)

    def _run(
        self, params: Params, tokens: np.ndarray, lengths: np.ndarray, reference: Params | None
    ) -> TokenLogProbs | np.ndarray:
        everyones = self._rows.gather(lengths)
        pending = []
        # Dispatch all before reading any: the device never waits for the host between micro-batches.
        budget = self._tokens_per_device // sequences_per_row(tokens)
        for micro in plan_micro_batches(everyones, budget, self._rows.blocks):
            mine = self._rows.local(micro.rows, len(everyones))
            placed = self._rows.place(take(tokens, mine, micro.padded_length))
            pending.append((mine, self._score(params, placed, reference)))
        return scatter([(mine, self._rows.fetch(scored)) for mine, scored in pending], tokens.shape)

    def log_probs(
        self,
        params: Params,
        tokens: np.ndarray,
        lengths: np.ndarray,
        response_mask: np.ndarray,
        reference: Params | None = None,
    ) -> TokenLogProbs:
        """Return log-probs and entropy [B, T] float32, zero off the mask (a language model's).

        With frozen weights of a reference also the KL to it over the whole vocabulary.
        """
        said = self._run(params, tokens, lengths, reference)
        return jax.tree.map(lambda leaf: np.where(response_mask, leaf, np.float32(0.0)), said)

    def values(
        self, params: Params, tokens: np.ndarray, lengths: np.ndarray, response_mask: np.ndarray
    ) -> np.ndarray:
        """Return values [B, T] float32, zero off the mask (a scalar model's)."""
        return np.where(response_mask, self._run(params, tokens, lengths, None), np.float32(0.0))
