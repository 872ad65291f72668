"""Generation: prefill, then a decode loop, in one compiled program per shape.

Knows no algorithm, no text and no reward: token ids in, token ids and log-probs out.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Traced
from jaxtyping import Array, Bool, Float, Int

from jaxflow.engine import attention
from jaxflow.engine.batching import LENGTH_UNIT, ladder, plan_rounds, scatter, take
from jaxflow.engine.cache import empty_cache
from jaxflow.engine.experts import experts_over
from jaxflow.engine.rows import Rows
from jaxflow.engine.sampling import Sampling, sample, sequence_keys
from jaxflow.engine.sharding import Layout
from jaxflow.engine.state import abstract_arrays
from jaxflow.models.layers import Surroundings
from jaxflow.models.transformer import Model, Params
from jaxflow.types import Prompts, Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Asked:
    """Prompts in the shape of a compiled program; a row of length 0 is padding."""

    tokens: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    sequence_ids: Int[Array, "B"]


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
    """Generates responses on a mesh under one generation layout; a process gives and gets its own rows."""

    def __init__(self, model: Model, layout: Layout, dtype: str, sequences_per_device: int):
        self._model, self._layout = model, layout
        self._dtype = dtype
        self._sequences_per_device = sequences_per_device
        self._rows = Rows(layout.mesh, layout.axes["batch"])
        self._program = jax.jit(
            self._traced, static_argnames=("sampling",), out_shardings=layout.sharding(("batch",))
        )

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
        self, params: Params, asked: _Asked, seed: Array, step: Array, purpose: Array, sampling: Sampling
    ) -> _Generated:
        layout, module = self._layout, self._model.bind(params)
        prompts, lengths = asked.tokens, asked.lengths
        keys = sequence_keys(seed, step, purpose, asked.sequence_ids)
        rows, width = prompts.shape
        total = width + sampling.max_response_tokens
        weights = module.backbone.layer_weights()
        cache = empty_cache(self._model.config, rows, total, self._dtype, layout)

        attend = attention.filling_cache(layout.mesh.devices.flat[0].platform)
        columns = jnp.broadcast_to(jnp.arange(width), prompts.shape)
        experts = experts_over(layout)
        around = Surroundings(attend, layout.constrain, mix_experts=experts)
        hidden, cache = module.backbone.with_carry(prompts, columns, cache, weights, around)
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
            attend = attention.one_token(state.positions)
            hidden, cache = module.backbone.with_carry(
                state.last[:, None],
                state.positions[:, None],
                state.cache,
                weights,
                Surroundings(attend, layout.constrain, mix_experts=experts),
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

    def trace(self, rows: int, width: int, sampling: Sampling) -> Traced:
        """Trace the program of a round of `rows` prompts, over all replicas, of `width` tokens; no array need exist."""
        layout, model = self._layout, self._model
        wanted = jax.tree.map(lambda leaf: leaf.update(dtype=self._dtype), model.shapes)
        params = abstract_arrays(wanted, layout.weights(model.names))

        def numbers(*shape: int) -> jax.ShapeDtypeStruct:
            names = ("batch", None)[: len(shape)]
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.sharding(names))

        asked = _Asked(numbers(rows, width), numbers(rows), numbers(rows))
        address = [jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.uint32, jnp.int32, jnp.int32)]
        return self._program.trace(params, asked, *address, sampling=sampling)

    def __call__(
        self,
        params: Params,
        prompts: Prompts,
        sampling: Sampling,
        seed: int,
        step: int,
        purpose: int,
        policy_updates: int,
    ) -> Rollout:
        """Generate one response per row of `prompts`; the rows keep their order and are marked with the weights' age.

        Rows run `sequences_per_device` per device at a time, the longest prompts first.
        """
        asked = _Asked(prompts.tokens, prompts.lengths, prompts.sequence_ids)
        everyones = self._rows.gather(prompts.lengths)
        address = (np.uint32(seed), np.int32(step), np.int32(purpose))
        pending = []
        # Dispatch all before reading any: the device never waits for the host between rounds.
        for chunk in plan_rounds(everyones, self._sequences_per_device, self._rows.blocks):
            mine = self._rows.local(chunk.rows, len(everyones))
            placed = self._rows.place(take(asked, mine, chunk.padded_length))
            pending.append((mine, self._program(params, placed, *address, sampling=sampling)))
        parts = [(mine, self._rows.fetch(generated)) for mine, generated in pending]
        return _assemble(prompts, parts, policy_updates)


def _assemble(prompts: Prompts, parts: list[tuple[np.ndarray, _Generated]], policy_updates: int) -> Rollout:
    """Put parts back into the prompts' order, at one common padded length."""
    longest = max(int(part.lengths.max(initial=0)) for _, part in parts)
    shape = (len(prompts.lengths), ladder(longest, LENGTH_UNIT))
    whole = scatter(parts, shape)
    column = np.arange(shape[1])[None, :]
    return Rollout(
        tokens=whole.tokens,
        lengths=whole.lengths,
        response_mask=(column >= prompts.lengths[:, None]) & (column < whole.lengths[:, None]),
        rollout_log_probs=whole.log_probs,
        behaviour_log_probs=whole.behaviour_log_probs,
        finished=whole.finished,
        groups=prompts.groups,
        policy_updates=np.full(len(prompts.lengths), policy_updates, np.int32),
    )
