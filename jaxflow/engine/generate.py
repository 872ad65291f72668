"""Generation: prefill, then a decode loop, in one compiled program per shape.

Knows no algorithm, no text and no reward: token ids in, token ids and log-probs out.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxflow.engine import attention
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.cache import empty_cache
from jaxflow.engine.sampling import Sampling, sample, sequence_keys
from jaxflow.engine.sharding import Layout
from jaxflow.models.transformer import Model, Params
from jaxflow.types import Prompts, Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Decoding:
    """What the decode loop carries."""

    generated: Int[Array, ""]  # response tokens drawn so far per unfinished row
    last: Int[Array, "B"]  # the token drawn last
    positions: Int[Array, "B"]  # where it stands
    finished: Bool[Array, "B"]  # rows that drew an end token, and rows of padding
    tokens: Int[Array, "B S"]
    log_probs: Float[Array, "B S"]
    behaviour_log_probs: Float[Array, "B S"]
    cache: tuple  # per layer (keys, values) [B, K, S, H]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Generated:
    tokens: Int[Array, "B S"]
    log_probs: Float[Array, "B S"]
    behaviour_log_probs: Float[Array, "B S"]
    lengths: Int[Array, "B"]
    finished: Bool[Array, "B"]


class Generator:
    """Generates responses on a mesh under one generation layout."""

    def __init__(self, model: Model, layout: Layout, dtype: str, sequences_per_device: int):
        self._model, self._layout = model, layout
        self._dtype = dtype
        self._rows_at_once = sequences_per_device * layout.replicas
        self._program = jax.jit(self._traced, static_argnames=("sampling",), out_shardings=layout.replicated)

    def _record(self, state: _Decoding, logits: Array, keys: Array, sampling: Sampling) -> _Decoding:
        """Draw the next token of each row and write it and its log-probs behind the last one."""
        positions = state.positions + 1
        token, log_prob, behaviour = sample(logits, keys, positions, sampling)
        ends = jnp.isin(token, jnp.asarray(sampling.end_ids, jnp.int32)) if sampling.end_ids else False
        column = jnp.arange(state.tokens.shape[1])[None, :]
        here = (column == positions[:, None]) & ~state.finished[:, None]
        return dataclasses.replace(
            state,
            generated=state.generated + 1,
            last=jnp.where(state.finished, state.last, token),
            positions=jnp.where(state.finished, state.positions, positions),
            finished=state.finished | ends,
            tokens=jnp.where(here, token[:, None], state.tokens),
            log_probs=jnp.where(here, log_prob[:, None], state.log_probs),
            behaviour_log_probs=jnp.where(here, behaviour[:, None], state.behaviour_log_probs),
        )

    def _traced(
        self, params: Params, prompts: Array, lengths: Array, keys: Array, sampling: Sampling
    ) -> _Generated:
        layout, module = self._layout, self._model.bind(params)
        rows, width = prompts.shape
        total = width + sampling.max_response_tokens
        weights = module.backbone.layer_weights()
        cache = empty_cache(self._model.config, rows, total, self._dtype, layout)

        attend = attention.filling_cache(layout.mesh.devices.flat[0].platform)
        columns = jnp.broadcast_to(jnp.arange(width), prompts.shape)
        hidden, cache = module.backbone.with_carry(prompts, columns, attend, cache, weights, layout.constrain)
        last_of_prompt = jnp.maximum(lengths - 1, 0)
        hidden = jnp.take_along_axis(hidden, last_of_prompt[:, None, None], axis=1)[:, 0]
        zeros = jnp.zeros((rows, total), jnp.float32)
        state = _Decoding(
            generated=jnp.int32(0),
            last=jnp.zeros_like(lengths),
            positions=last_of_prompt,
            finished=lengths == 0,
            tokens=jnp.pad(prompts, ((0, 0), (0, total - width)), constant_values=sampling.pad_id),
            log_probs=zeros,
            behaviour_log_probs=zeros,
            cache=cache,
        )
        state = self._record(state, module.logits(hidden), keys, sampling)

        def more(state: _Decoding):
            return (state.generated < sampling.max_response_tokens) & ~jnp.all(state.finished)

        def step(state: _Decoding) -> _Decoding:
            # A finished row decodes its last token again and again, at its own last position.
            hidden, cache = module.backbone.with_carry(
                state.last[:, None],
                state.positions[:, None],
                attention.one_token(state.positions),
                state.cache,
                weights,
                layout.constrain,
            )
            state = dataclasses.replace(state, cache=cache)
            return self._record(state, module.logits(hidden[:, 0]), keys, sampling)

        state = jax.lax.while_loop(more, step, state)
        ended = jnp.isin(state.last, jnp.asarray(sampling.end_ids, jnp.int32)) if sampling.end_ids else False
        return _Generated(
            tokens=state.tokens,
            log_probs=state.log_probs,
            behaviour_log_probs=state.behaviour_log_probs,
            lengths=jnp.where(lengths == 0, 0, state.positions + 1),
            finished=state.finished & ended,
        )

    def __call__(
        self, params: Params, prompts: Prompts, sampling: Sampling, seed: int, step: int, purpose: int
    ) -> Rollout:
        """Generate one response per row of `prompts`; the rows keep their order.

        Rows run `sequences_per_device` per device at a time, the longest prompts first.
        """
        order = np.argsort(-prompts.lengths, kind="stable")
        chunks = [order[i : i + self._rows_at_once] for i in range(0, len(order), self._rows_at_once)]
        pending = [self._dispatch(params, prompts, rows, sampling, seed, step, purpose) for rows in chunks]
        done = [jax.tree.map(np.asarray, generated) for generated in pending]
        return _assemble(prompts, chunks, done)

    def _dispatch(
        self, params, prompts: Prompts, rows, sampling: Sampling, seed: int, step: int, purpose: int
    ):
        padded_rows = min(self._rows_at_once, ladder(len(rows), self._layout.replicas))
        width = ladder(int(prompts.lengths[rows].max()), LENGTH_UNIT)
        tokens = np.full((padded_rows, width), sampling.pad_id, np.int32)
        given = prompts.tokens[rows, :width]
        tokens[: len(rows), : given.shape[1]] = given
        lengths = np.zeros(padded_rows, np.int32)
        lengths[: len(rows)] = prompts.lengths[rows]
        ids = np.zeros(padded_rows, np.int32)
        ids[: len(rows)] = prompts.sequence_ids[rows]
        place = functools.partial(jax.device_put, device=self._layout.sharding(("batch",)))
        place_rows = functools.partial(jax.device_put, device=self._layout.sharding(("batch", None)))
        keys = sequence_keys(seed, step, purpose, ids)
        return self._program(params, place_rows(tokens), place(lengths), place(keys), sampling=sampling)


def _assemble(prompts: Prompts, chunks: list[np.ndarray], done: list[_Generated]) -> Rollout:
    """Put chunks back into the prompts' order, at one common padded length."""
    count = len(prompts.lengths)
    lengths, finished = np.zeros(count, np.int32), np.zeros(count, bool)
    for rows, part in zip(chunks, done, strict=True):
        lengths[rows], finished[rows] = part.lengths[: len(rows)], part.finished[: len(rows)]
    width = ladder(int(lengths.max()), LENGTH_UNIT)
    tokens = np.zeros((count, width), np.int32)
    log_probs, behaviour = np.zeros((2, count, width), np.float32)
    for rows, part in zip(chunks, done, strict=True):
        w = min(width, part.tokens.shape[1])
        tokens[rows, :w] = part.tokens[: len(rows), :w]
        log_probs[rows, :w] = part.log_probs[: len(rows), :w]
        behaviour[rows, :w] = part.behaviour_log_probs[: len(rows), :w]
    column = np.arange(width)[None, :]
    response_mask = (column >= prompts.lengths[:, None]) & (column < lengths[:, None])
    return Rollout(tokens, lengths, response_mask, log_probs, behaviour, finished, prompts.groups)
