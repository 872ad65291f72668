"""Sequences on their way, and the programs that move them on: prefill, start, decode, resize.

A slot is a row of the cache with the few numbers that say which sequence stands in it. Which sequence goes where is
decided on the host (schedule.py); here are only arrays and what one dispatch does to them. Knows no prompt's text,
no algorithm and no process.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.stages import Traced
from jaxtyping import Array, Bool, Int

from jaxflow.engine import attention
from jaxflow.engine.cache import Cache, cache_sharding, copy_rows, empty_cache
from jaxflow.engine.course import SEQUENCE_BYTES, Course, Drawn, Sequences, moved_on_by_a_token
from jaxflow.engine.experts import experts_over
from jaxflow.engine.rotation import Rotation
from jaxflow.engine.rows import EMPTY
from jaxflow.engine.sampling import Sampling, StopTable, sequence_keys
from jaxflow.engine.sharding import Layout
from jaxflow.engine.state import abstract_arrays
from jaxflow.engine.unstacking import Unstacker
from jaxflow.models.layers import Surroundings
from jaxflow.models.transformer import Model, Params, Unstacked

# Of all slots, the share that must be free before a chunk ends early for those who wait: a start costs the device
# a pause of the host's length, so that starts are worth collecting; at 16 slots one is enough.
_FREE_SHARE = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Slots of all replicas, those of one side by side."""

    sequences: Sequences
    cache: Cache  # per layer (keys, values) [B, K, S, H]
    numbers: Int[Array, "B"]  # which of its replica's queue each one's sequence is, or EMPTY
    taken: Int[Array, "R"]  # how many of each replica's queue have started


SLOT_BYTES = SEQUENCE_BYTES + 4  # of one slot, but for its keys and values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """Sequences in the order in which they take slots, the same number for each replica, nobody's at the end."""

    last: Int[Array, "Q"]  # the prompt's last token
    positions: Int[Array, "Q"]  # where it stands
    ends: Int[Array, "Q"]
    sequence_ids: Int[Array, "Q"]
    own_seeds: Int[Array, "Q"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ready:
    """Which of a queue may start."""

    origins: Int[Array, "Q"]  # the place of each one's prepared prompt, within the replica
    counts: Int[Array, "R"]  # so many of each replica's, from the first; of the others no origin is read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What every process learns of a chunk, of all slots."""

    numbers: Int[Array, "B"]  # who was in them; EMPTY: nobody yet
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
        self._dispatching = threading.Lock()  # of lanes that need a program first at once, one compiles it
        by_row, caches = layout.sharding(("batch",)), cache_sharding(layout)
        slots = Slots(by_row, caches, by_row, by_row)
        self._platform = layout.mesh.devices.flat[0].platform
        self._unstacker = Unstacker(model, layout)
        self._no_prompts = jax.jit(self._empty, static_argnums=(0, 1), out_shardings=caches)
        self._no_slots = jax.jit(self._idle, static_argnums=(0, 1), out_shardings=slots)
        self._moved_layer = jax.jit(self._moved, static_argnums=(2,), out_shardings=caches)
        self._chosen = jax.jit(self._of_origins, out_shardings=by_row)
        self._prefill = jax.jit(self._filled, donate_argnums=(1,), out_shardings=caches)
        self._start = jax.jit(self._started, donate_argnums=(0,), out_shardings=slots)
        self._decode = jax.jit(
            self._chunk,
            static_argnames=("sampling",),
            donate_argnames=("slots",),
            out_shardings=(slots, by_row, layout.replicated),
        )

    @property
    def groups(self) -> int:
        """Return how many groups a replica's slots are cut into, one for each stage."""
        return self._layout.stages

    @property
    def chunk_steps(self) -> int:
        """Return how many tokens a sequence draws in one chunk at most."""
        return self._chunk_steps

    def unstacked(self, params: Params, keep: Params) -> Unstacked:
        """Return rollout weights as the programs read them; see `Unstacker`."""
        return self._unstacker(params, keep)

    def prompts(self, rows: int, positions: int) -> Cache:
        """Return room for so many prepared prompts, over all replicas."""
        return self._no_prompts(rows, positions)

    def slots(self, rows: int, positions: int) -> Slots:
        """Return slots with nobody in them."""
        return self._no_slots(rows, positions)

    def prefill(self, weights: Unstacked, prepared: Cache, tokens: Array, places: Array) -> Cache:
        """Write the keys and values of prompts [M, T] into places of the prepared ones, which are used up.

        Nothing else is computed: a sequence decodes its prompt's last token itself, and so draws its first one.
        """
        with self._dispatching:
            return self._prefill(weights, prepared, tokens, places)

    def start(self, slots: Slots, prepared: Cache, queue: Queue, ready: Ready) -> Slots:
        """Put the next sequences that are ready into all free slots, which are used up.

        The first of the queue goes to the first free slot, and so on. Those that share a prompt have copies of one
        prefill. The device decides, so that the host hands over the queue once and not those who start each time.
        """
        with self._dispatching:
            return self._start(slots, prepared, queue, ready)

    def resize(self, slots: Slots, origins: Array, positions: int) -> Slots:
        """Return slots whose sequences come from these old ones, numbered within each replica, EMPTY at the end.

        The old slots are let go layer by layer: at most one layer's keys and values exist twice.
        """
        old = collections.deque(slots.cache)
        with self._dispatching:
            sequences, numbers = self._chosen(slots.sequences, slots.numbers, origins)
        taken = slots.taken
        del slots
        new: list[tuple[Array, Array]] = []
        while old:
            layer = tuple(old.popleft() for _ in range(self.groups))
            with self._dispatching:
                new += self._moved_layer(layer, origins, positions)
            del layer
        return Slots(sequences, tuple(new), numbers, taken)

    def decode(
        self,
        weights: Unstacked,
        slots: Slots,
        queued: Array,
        address: Address,
        stops: StopTable | None,
        sampling: Sampling,
    ) -> tuple[Slots, Drawn, Progress]:
        """Move all running sequences on by a chunk of tokens at most; the slots are used up.

        A chunk ends early when nothing runs, or when enough slots are free for the sequences that wait: those of the
        `queued` [R] ones of each replica that have not started.
        """
        with self._dispatching:
            return self._decode(weights, slots, queued, address, stops, sampling=sampling)

    def _empty(self, rows: int, positions: int) -> Cache:
        return empty_cache(self._model.config, rows, positions, self._dtype, self._layout)

    def _idle(self, rows: int, positions: int) -> Slots:
        numbers = [jnp.zeros(rows, jnp.int32) for _ in range(7)]
        flags = [jnp.zeros(rows, bool) for _ in range(2)]
        cache, nobody = self._empty(rows, positions), jnp.full(rows, EMPTY, jnp.int32)
        return Slots(Sequences(*numbers, *flags), cache, nobody, jnp.zeros(self._layout.replicas, jnp.int32))

    def _moved(self, old: Cache, origins: Array, positions: int) -> Cache:
        """Return one layer of the old slots, of each stage one, as the new slots hold it."""
        rows = jnp.arange(len(origins)) % (len(origins) // self._layout.replicas)
        places = jnp.where(origins == EMPTY, EMPTY, rows)
        new = empty_cache(self._model.config, len(origins), positions, self._dtype, self._layout)
        return copy_rows(new[: self.groups], old, origins, places, self._layout)

    def _of_origins(
        self, sequences: Sequences, numbers: Array, origins: Array
    ) -> tuple[Sequences, Int[Array, "B"]]:
        def local(old: Sequences, numbers: Array, origins: Array) -> tuple[Sequences, Array]:
            chosen = jax.tree.map(lambda array: array[jnp.maximum(origins, 0)], old)
            here = origins != EMPTY
            moved = jnp.where(here, numbers[jnp.maximum(origins, 0)], EMPTY)
            return dataclasses.replace(chosen, running=chosen.running & here), moved

        rows = self._layout.spec(("batch",))
        return jax.shard_map(local, mesh=self._layout.mesh, in_specs=(rows, rows, rows), out_specs=rows)(
            sequences, numbers, origins
        )

    def _around(self, attend: attention.Attend) -> Surroundings:
        return Surroundings(attend, self._layout.constrain, mix_experts=experts_over(self._layout))

    def _filled(self, weights: Unstacked, prepared: Cache, tokens: Array, places: Array) -> Cache:
        module, layers = self._model.bind_rest(weights.rest), weights.layers
        attend = attention.keeping(self._platform)
        numbers = jnp.arange(len(places)) % (len(places) // self._layout.replicas)
        if self.groups > 1:
            way = Rotation(module.backbone, layers, self._layout, self._around)
            cache = way.fill(self._in_groups(tokens), attend)
        else:
            columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            nothing = (None,) * self._model.config.layers
            _, cache = module.backbone.with_carry(tokens, columns, nothing, layers, self._around(attend))
        return copy_rows(prepared, cache, numbers, places, self._layout)

    def _in_groups(self, rows: Int[Array, "M T"]) -> Int[Array, "M' T"]:
        """Fill each replica's rows up until they are a multiple of the groups."""
        of_replicas = rows.reshape(self._layout.replicas, -1, rows.shape[1])
        padding = -of_replicas.shape[1] % self.groups
        padded = jnp.pad(of_replicas, ((0, 0), (0, padding), (0, 0)))
        return self._layout.constrain(padded.reshape(-1, rows.shape[1]), ("batch", None))

    def _started(self, slots: Slots, prepared: Cache, queue: Queue, ready: Ready) -> Slots:
        def local(
            old: Sequences, numbers: Array, taken: Array, queue: Queue, ready: Ready
        ) -> tuple[Sequences, Array, Array, Array, Array]:
            free = ~old.running
            next_ = taken[0] + jnp.cumsum(free, dtype=jnp.int32) - 1
            takes = free & (next_ < ready.counts[0])
            numbers = jnp.where(takes, next_, numbers)
            given, origins = jax.tree.map(lambda of: of[jnp.maximum(numbers, 0)], (queue, ready.origins))
            nothing, here = jnp.zeros_like(given.last), jnp.ones_like(takes)
            fresh = Sequences(
                last=given.last,
                positions=given.positions,
                ends=given.ends,
                sequence_ids=given.sequence_ids,
                own_seeds=given.own_seeds,
                drawn=nothing,
                matched=nothing,
                running=here,
                ended=~here,
            )
            sequences = jax.tree.map(lambda new, was: jnp.where(takes, new, was), fresh, old)
            first = jnp.argsort(~takes, stable=True)
            places = jnp.where(takes[first], first, EMPTY)
            started = taken + jnp.sum(takes, dtype=jnp.int32)
            return sequences, numbers, started, origins[first], places

        rows = self._layout.spec(("batch",))
        assign = jax.shard_map(
            local, mesh=self._layout.mesh, in_specs=(rows,) * 5, out_specs=rows, check_vma=False
        )
        sequences, numbers, taken, origins, places = assign(
            slots.sequences, slots.numbers, slots.taken, queue, ready
        )
        cache = copy_rows(slots.cache, prepared, origins, places, self._layout)
        return Slots(sequences, cache, numbers, taken)

    def _chunk(
        self,
        weights: Unstacked,
        slots: Slots,
        queued: Array,
        address: Address,
        stops: StopTable | None,
        sampling: Sampling,
    ) -> tuple[Slots, Drawn, Progress]:
        module, layers, told = self._model.bind_rest(weights.rest), weights.layers, slots.sequences
        rows, steps, waiting = len(told.last), self._chunk_steps, queued - slots.taken
        keys = sequence_keys(address.seed, address.step, address.purpose, told.sequence_ids, told.own_seeds)
        numbers = [jnp.zeros((rows, steps), jnp.float32) for _ in range(2)]
        drawn = Drawn(jnp.zeros((rows, steps), jnp.int32), *numbers)
        started = (told, keys, drawn, jnp.zeros(rows, jnp.int32))
        record = functools.partial(moved_on_by_a_token, module=module, sampling=sampling, stops=stops)

        if self.groups > 1:
            way = Rotation(module.backbone, layers, self._layout, self._around)
            courses, cache = way.decode(
                tuple(Course(*group, jnp.int32(0)) for group in way.groups(started)),
                slots.cache,
                lambda course: (course.sequences.last, course.sequences.positions),
                lambda courses: self._goes_on([course.sequences.running for course in courses], waiting),
                record,
                steps,
            )
            ended = [(course.sequences, course.drawn, course.counts) for course in courses]
            sequences, drawn, counts = way.together(ended)
        else:

            def one_token(carry):
                course, cache = carry
                now = course.sequences
                hidden, cache = module.backbone.with_carry(
                    now.last[:, None],
                    now.positions[:, None],
                    cache,
                    layers,
                    self._around(attention.one_token(self._platform, now.positions, self._layout)),
                )
                return record(course, hidden[:, 0]), cache

            def more(carry):
                course = carry[0]
                return (course.step < steps) & self._goes_on([course.sequences.running], waiting)

            first = Course(*started, jnp.int32(0))
            course, cache = jax.lax.while_loop(more, one_token, (first, slots.cache))
            sequences, drawn, counts = course.sequences, course.drawn, course.counts
        progress = Progress(slots.numbers, counts, sequences.running, sequences.ended)
        return Slots(sequences, cache, slots.numbers, slots.taken), drawn, progress

    def _goes_on(self, running: Sequence[Bool[Array, "b"]], waiting: Int[Array, "R"]) -> Bool[Array, ""]:
        """Return whether a chunk is worth going on with: some run, and few of those who wait could start."""
        replicas, rows = self._layout.replicas, sum(map(len, running))
        enough = jnp.minimum(max(1, rows // _FREE_SHARE), jnp.maximum(jnp.sum(waiting), 1))
        free = sum(jnp.sum(~group.reshape(replicas, -1), axis=1) for group in running)
        some = functools.reduce(jnp.logical_or, map(jnp.any, running))
        return some & (jnp.sum(jnp.minimum(free, waiting)) < enough)

    def _numbers(self, *shape: int) -> jax.ShapeDtypeStruct:
        names = ("batch", None)[: len(shape)]
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self._layout.sharding(names))

    def trace_prefill(self, rows: int, width: int) -> Traced:
        """Trace the prefill of `rows` prompts of `width` tokens, over all replicas; no array need exist."""
        prepared = jax.eval_shape(lambda: self._empty(rows, width))
        caches = cache_sharding(self._layout)
        prepared = abstract_arrays(prepared, jax.tree.map(lambda _: caches, prepared))
        return self._prefill.trace(
            self._unstacker.abstract(self._dtype), prepared, self._numbers(rows, width), self._numbers(rows)
        )

    def trace_decode(self, rows: int, positions: int, sampling: Sampling) -> Traced:
        """Trace a chunk of `rows` slots of `positions` each, over all replicas; no array need exist."""
        by_row, caches = self._layout.sharding(("batch",)), cache_sharding(self._layout)
        slots = jax.eval_shape(lambda: self._idle(rows, positions))
        places = jax.tree.map(lambda leaf: by_row if leaf.ndim == 1 else caches, slots)
        address = Address(*(jax.ShapeDtypeStruct((), kind) for kind in (jnp.uint32, jnp.int32, jnp.int32)))
        queued = self._numbers(self._layout.replicas)
        weights = self._unstacker.abstract(self._dtype)
        return self._decode.trace(
            weights, abstract_arrays(slots, places), queued, address, None, sampling=sampling
        )
