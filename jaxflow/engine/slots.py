"""Sequences on their way, and the programs that move them on: prefill, start, decode, resize.

A slot is a row of the cache with the few numbers that say which sequence stands in it. Which sequence goes where is
decided on the host (schedule.py); here are only arrays and what one dispatch does to them. Knows no prompt's text,
no algorithm and no process.
"""

from __future__ import annotations

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.stages import Traced
from jaxtyping import Array, Bool, Float, Int

from jaxflow.engine import attention
from jaxflow.engine.cache import NAMES as CACHE_NAMES
from jaxflow.engine.cache import Cache, cache_sharding, copy_rows, empty_cache
from jaxflow.engine.experts import experts_over
from jaxflow.engine.rows import EMPTY
from jaxflow.engine.sampling import Sampling, StopTable, ends, sample, sequence_keys
from jaxflow.engine.sharding import Layout
from jaxflow.engine.state import abstract_arrays
from jaxflow.models.layers import Surroundings
from jaxflow.models.transformer import LayerWeights, Model, Params

# Of all slots, the share that must be free before a chunk ends early for those who wait: a start costs the device
# a pause of the host's length, so that starts are worth collecting; at 16 slots one is enough.
_FREE_SHARE = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """What the device knows of the sequence in each slot; of a slot that is not running, nothing is read."""

    last: Int[Array, "B"]  # the token that is decoded next; the cache holds what stands before it
    positions: Int[Array, "B"]  # where it stands
    ends: Int[Array, "B"]  # the first position that the sequence may not reach
    sequence_ids: Int[Array, "B"]  # the address of its randomness
    own_seeds: Int[Array, "B"]  # in place of the run's seed, the step and the sequence id; -1: none
    drawn: Int[Array, "B"]  # tokens of its response
    matched: Int[Array, "B"]  # state of the automaton that notices stop strings
    running: Bool[Array, "B"]  # it takes more tokens
    ended: Bool[Array, "B"]  # it ended by itself: with an end token or a stop string


SEQUENCE_BYTES = 7 * 4 + 2  # of one slot's numbers above


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Slots of all replicas, those of one side by side."""

    sequences: Sequences
    cache: Cache  # per layer (keys, values) [B, K, S, H]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Starts:
    """Sequences that take slots, the same number M for each replica; those with place EMPTY, at the end, do not."""

    places: Int[Array, "M"]  # slot within the replica
    origins: Int[Array, "M"]  # which prepared prompt of the replica
    last: Int[Array, "M"]  # the prompt's last token
    positions: Int[Array, "M"]  # where it stands
    ends: Int[Array, "M"]
    sequence_ids: Int[Array, "M"]
    own_seeds: Int[Array, "M"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """The tokens of one chunk: of slot b the first `counts[b]` of each row."""

    tokens: Int[Array, "B C"]
    log_probs: Float[Array, "B C"]
    behaviour_log_probs: Float[Array, "B C"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What every process learns of a chunk, of all slots."""

    counts: Int[Array, "B"]  # tokens drawn
    running: Bool[Array, "B"]
    ended: Bool[Array, "B"]  # by itself; neither running nor ended: at its limit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Address:
    """Where the randomness of a call is; with a sequence id and a position it is a token's."""

    seed: Int[Array, ""]  # uint32
    step: Int[Array, ""]
    purpose: Int[Array, ""]


class SlotPrograms:
    """The compiled programs of one model under one generation layout."""

    def __init__(self, model: Model, layout: Layout, dtype: str, chunk_steps: int):
        self._model, self._layout, self._dtype = model, layout, dtype
        self._chunk_steps = chunk_steps
        by_row, caches = layout.sharding(("batch",)), cache_sharding(layout)
        slots = Slots(by_row, caches)
        self._platform = layout.mesh.devices.flat[0].platform
        turned = self._platform == "cpu"  # GPUs multiply either way alike
        self._layer_weights = functools.partial(model.layer_weights, turned=turned)
        self._layer_shardings = layout.weights(model.layer_names(turned))
        self._layers = jax.jit(self._layer_weights, out_shardings=self._layer_shardings)
        self._no_prompts = jax.jit(self._empty, static_argnums=(0, 1), out_shardings=caches)
        self._no_slots = jax.jit(self._idle, static_argnums=(0, 1), out_shardings=slots)
        self._moved_pair = jax.jit(self._moved, static_argnums=(2,), out_shardings=caches)
        self._chosen = jax.jit(self._of_origins, out_shardings=by_row)
        self._prefill = jax.jit(self._filled, donate_argnums=(2,), out_shardings=caches)
        self._start = jax.jit(self._started, donate_argnums=(0,), out_shardings=slots)
        self._decode = jax.jit(
            self._chunk,
            static_argnames=("sampling",),
            donate_argnames=("slots",),
            out_shardings=(slots, by_row, layout.replicated),
        )

    @property
    def chunk_steps(self) -> int:
        """Return how many tokens a sequence draws in one chunk at most."""
        return self._chunk_steps

    def layers(self, params: Params) -> LayerWeights:
        """Return each layer's weights as arrays of their own: a loop over tokens would cut them out of their stack."""
        return self._layers(params)

    def prompts(self, rows: int, positions: int) -> Cache:
        """Return room for so many prepared prompts, over all replicas."""
        return self._no_prompts(rows, positions)

    def slots(self, rows: int, positions: int) -> Slots:
        """Return slots with nobody in them."""
        return self._no_slots(rows, positions)

    def prefill(
        self, params: Params, layers: LayerWeights, prepared: Cache, tokens: Array, places: Array
    ) -> Cache:
        """Write the keys and values of prompts [M, T] into places of the prepared ones, which are used up.

        Nothing else is computed: a sequence decodes its prompt's last token itself, and so draws its first one.
        """
        return self._prefill(params, layers, prepared, tokens, places)

    def start(self, slots: Slots, prepared: Cache, starts: Starts) -> Slots:
        """Put sequences into slots, which are used up; those that share a prompt have copies of one prefill."""
        return self._start(slots, prepared, starts)

    def resize(self, slots: Slots, origins: Array, positions: int) -> Slots:
        """Return slots whose sequences come from these old ones, numbered within each replica, EMPTY at the end.

        The old slots are let go layer by layer: at most one layer's keys and values exist twice.
        """
        old = collections.deque(slots.cache)
        sequences = self._chosen(slots.sequences, origins)
        del slots
        new = []
        while old:
            new.append(self._moved_pair(old.popleft(), origins, positions))
        return Slots(sequences, tuple(new))

    def decode(
        self,
        params: Params,
        layers: LayerWeights,
        slots: Slots,
        waiting: Array,
        address: Address,
        stops: StopTable | None,
        sampling: Sampling,
    ) -> tuple[Slots, Drawn, Progress]:
        """Move all running sequences on by a chunk of tokens at most; the slots are used up.

        A chunk ends early when nothing runs, or when enough slots are free for the sequences that wait, of which
        `waiting` says how many each replica has.
        """
        return self._decode(params, layers, slots, waiting, address, stops, sampling=sampling)

    def _empty(self, rows: int, positions: int) -> Cache:
        return empty_cache(self._model.config, rows, positions, self._dtype, self._layout)

    def _idle(self, rows: int, positions: int) -> Slots:
        numbers = [jnp.zeros(rows, jnp.int32) for _ in range(7)]
        flags = [jnp.zeros(rows, bool) for _ in range(2)]
        return Slots(Sequences(*numbers, *flags), self._empty(rows, positions))

    def _moved(self, pair: tuple[Array, Array], origins: Array, positions: int) -> tuple[Array, Array]:
        rows = jnp.arange(len(origins)) % (len(origins) // self._layout.replicas)
        places = jnp.where(origins == EMPTY, EMPTY, rows)
        shape = (len(origins), pair[0].shape[1], positions, pair[0].shape[3])
        empty = tuple(self._layout.constrain(jnp.zeros(shape, one.dtype), CACHE_NAMES) for one in pair)
        return copy_rows((empty,), (pair,), origins, places, self._layout)[0]

    def _of_origins(self, sequences: Sequences, origins: Array) -> Sequences:
        def local(old: Sequences, origins: Array) -> Sequences:
            chosen = jax.tree.map(lambda array: array[jnp.maximum(origins, 0)], old)
            return dataclasses.replace(chosen, running=chosen.running & (origins != EMPTY))

        rows = self._layout.spec(("batch",))
        return jax.shard_map(local, mesh=self._layout.mesh, in_specs=(rows, rows), out_specs=rows)(
            sequences, origins
        )

    def _around(self, attend: attention.Attend) -> Surroundings:
        return Surroundings(attend, self._layout.constrain, mix_experts=experts_over(self._layout))

    def _filled(
        self, params: Params, layers: LayerWeights, prepared: Cache, tokens: Array, places: Array
    ) -> Cache:
        module = self._model.bind(params)
        around = self._around(attention.keeping(self._platform))
        columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        nothing = (None,) * self._model.config.layers
        _, cache = module.backbone.with_carry(tokens, columns, nothing, layers, around)
        numbers = jnp.arange(len(places)) % (len(places) // self._layout.replicas)
        return copy_rows(prepared, cache, numbers, places, self._layout)

    def _started(self, slots: Slots, prepared: Cache, starts: Starts) -> Slots:
        cache = copy_rows(slots.cache, prepared, starts.origins, starts.places, self._layout)
        here = jnp.ones_like(starts.last, bool)
        nothing = jnp.zeros_like(starts.last)
        fresh = Sequences(
            last=starts.last,
            positions=starts.positions,
            ends=starts.ends,
            sequence_ids=starts.sequence_ids,
            own_seeds=starts.own_seeds,
            drawn=nothing,
            matched=nothing,
            running=here,
            ended=jnp.zeros_like(here),
        )

        def local(old: Sequences, new: Sequences, places: Array) -> Sequences:
            to = jnp.where(places == EMPTY, len(old.last), places)
            return jax.tree.map(lambda array, given: array.at[to].set(given, mode="drop"), old, new)

        rows = self._layout.spec(("batch",))
        write = jax.shard_map(
            local, mesh=self._layout.mesh, in_specs=(rows, rows, rows), out_specs=rows, check_vma=False
        )
        return Slots(write(slots.sequences, fresh, starts.places), cache)

    def _chunk(
        self,
        params: Params,
        layers: LayerWeights,
        slots: Slots,
        waiting: Array,
        address: Address,
        stops: StopTable | None,
        sampling: Sampling,
    ) -> tuple[Slots, Drawn, Progress]:
        module, replicas = self._model.bind(params), self._layout.replicas
        rows, steps = len(slots.sequences.last), self._chunk_steps
        told = slots.sequences
        keys = sequence_keys(address.seed, address.step, address.purpose, told.sequence_ids, told.own_seeds)
        enough = jnp.minimum(max(1, rows // _FREE_SHARE), jnp.maximum(jnp.sum(waiting), 1))

        def more(carry):
            step, slots, _, _ = carry
            running = slots.sequences.running
            free = jnp.sum(~running.reshape(replicas, -1), axis=1)
            startable = jnp.sum(jnp.minimum(free, waiting))
            return (step < steps) & jnp.any(running) & (startable < enough)

        def one_token(carry):
            step, slots, drawn, counts = carry
            now = slots.sequences
            hidden, cache = module.backbone.with_carry(
                now.last[:, None],
                now.positions[:, None],
                slots.cache,
                layers,
                self._around(attention.one_token(self._platform, now.positions)),
            )
            positions = now.positions + 1
            token, *log_probs = sample(module.logits(hidden[:, 0]), keys, positions, now.drawn, sampling)
            drawn = Drawn(
                *(
                    jax.lax.dynamic_update_slice(whole, new[:, None], (0, step))
                    for whole, new in zip(
                        (drawn.tokens, drawn.log_probs, drawn.behaviour_log_probs),
                        (token, *log_probs),
                        strict=True,
                    )
                )
            )
            return step + 1, Slots(_moved_on(now, token, sampling, stops), cache), drawn, counts + now.running

        zeros = jnp.zeros((rows, steps), jnp.float32)
        drawn = Drawn(jnp.zeros((rows, steps), jnp.int32), zeros, zeros)
        counts = jnp.zeros(rows, jnp.int32)
        _, slots, drawn, counts = jax.lax.while_loop(more, one_token, (jnp.int32(0), slots, drawn, counts))
        return slots, drawn, Progress(counts, slots.sequences.running, slots.sequences.ended)

    def _abstract_weights(self) -> tuple[Params, LayerWeights]:
        layout, model = self._layout, self._model
        wanted = jax.tree.map(lambda leaf: leaf.update(dtype=self._dtype), model.shapes)
        params = abstract_arrays(wanted, layout.weights(model.names))
        layers = jax.eval_shape(self._layer_weights, params)
        return params, abstract_arrays(layers, self._layer_shardings)

    def _numbers(self, *shape: int) -> jax.ShapeDtypeStruct:
        names = ("batch", None)[: len(shape)]
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self._layout.sharding(names))

    def trace_prefill(self, rows: int, width: int) -> Traced:
        """Trace the prefill of `rows` prompts of `width` tokens, over all replicas; no array need exist."""
        prepared = jax.eval_shape(lambda: self._empty(rows, width))
        caches = cache_sharding(self._layout)
        prepared = abstract_arrays(prepared, jax.tree.map(lambda _: caches, prepared))
        return self._prefill.trace(
            *self._abstract_weights(), prepared, self._numbers(rows, width), self._numbers(rows)
        )

    def trace_decode(self, rows: int, positions: int, sampling: Sampling) -> Traced:
        """Trace a chunk of `rows` slots of `positions` each, over all replicas; no array need exist."""
        by_row, caches = self._layout.sharding(("batch",)), cache_sharding(self._layout)
        slots = jax.eval_shape(lambda: self._idle(rows, positions))
        places = jax.tree.map(lambda leaf: by_row if leaf.ndim == 1 else caches, slots)
        address = Address(*(jax.ShapeDtypeStruct((), kind) for kind in (jnp.uint32, jnp.int32, jnp.int32)))
        waiting = self._numbers(self._layout.replicas)
        weights = self._abstract_weights()
        return self._decode.trace(
            *weights, abstract_arrays(slots, places), waiting, address, None, sampling=sampling
        )


def _moved_on(
    now: Sequences, token: Int[Array, "B"], sampling: Sampling, stops: StopTable | None
) -> Sequences:
    """Return the sequences one token on; those that do not run decode their last token again and again."""
    over, matched = ends(token, now.drawn, now.matched, sampling, stops)
    return dataclasses.replace(
        now,
        last=jnp.where(now.running, token, now.last),
        positions=now.positions + now.running,
        drawn=now.drawn + now.running,
        matched=matched,
        running=now.running & ~over & (now.positions + 2 < now.ends),
        ended=now.ended | (now.running & over),
    )
