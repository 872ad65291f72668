"""Generation over stages: groups of rows go round the stages, and every stage works on another group at every tick.

Activations are a buffer [p, b, T, D] with a slot for each of p stages, which lie on devices of their own. A replica's
rows are p groups. At tick τ stage s runs its layers for group (τ − s) mod p and hands its slot on to the next stage, a
permutation between neighbours. What leaves the last stage is drawn from, and enters the first stage again at the next
tick: no stage waits for another, and a token of all rows takes p ticks of a p-th of the rows each. The cache lies so
that the stages need one of its pairs at a tick, each for its own group (cache.py). Knows a layout and the decoder's
layers; no sampling, no prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxflow.engine import attention
from jaxflow.engine.cache import NAMES, Cache
from jaxflow.engine.sharding import Layout
from jaxflow.models.layers import Attend, Surroundings
from jaxflow.models.transformer import Backbone, LayerWeights

State = TypeVar("State")

_SLOTS = ("layers", "batch", None, None)
_OF_STAGES = ("layers", "batch", *NAMES[1:])


class Rotation:
    """The way of groups of rows over the stages of one generation layout, inside a traced function."""

    def __init__(
        self,
        backbone: Backbone,
        layers: LayerWeights,
        layout: Layout,
        around: Callable[[Attend], Surroundings],
    ):
        """Take the layers of every stage; `around` makes a decoder's surroundings of the way queries meet keys."""
        self._stages, self._replicas = layout.stages, layout.replicas
        self._platform = layout.mesh.devices.flat[0].platform
        self._backbone, self._layers, self._layout, self._around = backbone, layers, layout, around
        kinds = np.reshape(backbone.config.local_layers, (self._stages, -1)).T
        # Where a layer is of the same kind in all stages it is static; else each stage brings its own along.
        self._local = [bool(kind[0]) if len(set(kind)) == 1 else jnp.asarray(kind) for kind in kinds.tolist()]

    def groups(self, rows: State) -> tuple[State, ...]:
        """Cut rows [B, …] of all replicas into groups [B/p, …]: of each replica's rows the first, second, … part."""

        def group(leaf: Array, g: int) -> Array:
            cut = leaf.reshape(self._replicas, self._stages, -1, *leaf.shape[1:])
            return cut[:, g].reshape(-1, *leaf.shape[1:])

        return tuple(jax.tree.map(functools.partial(group, g=g), rows) for g in range(self._stages))

    def together(self, groups: Sequence[State]) -> State:
        """Put groups back into the order of their replicas' rows."""

        def rows(*leaves: Array) -> Array:
            cut = [leaf.reshape(self._replicas, -1, *leaf.shape[1:]) for leaf in leaves]
            return jnp.stack(cut, 1).reshape(-1, *leaves[0].shape[1:])

        return jax.tree.map(rows, *groups)

    def fill(self, prompts: Int[Array, "B T"], attend: Attend) -> Cache:
        """Send prompts over the stages once, in p groups, and return their keys and values as a cache of their width.

        `attend` is one whose carry becomes the keys and values. 2p − 1 ticks, at p − 1 of which a stage has no group.
        """
        p, stages = self._stages, np.arange(self._stages)
        columns, groups = jnp.arange(prompts.shape[1])[None], self.groups(prompts)
        slots = self._empty_slots(*groups[0].shape)
        filled: list[Any] = [None] * p
        for tick in range(2 * p - 1):
            entering = self._backbone.start(groups[tick % p], self._around(attend))
            nothing = (None,) * len(self._layers)
            slots, pairs = self._tick(slots, entering, columns, nothing, lambda _: attend)
            if tick < p:
                filled[tick] = pairs
            else:  # the stages that no group had reached when the pair was made
                late = stages > tick - p
                filled[tick - p] = jax.tree.map(
                    lambda new, old, late=late: jnp.where(late.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
                    pairs,
                    filled[tick - p],
                )
        return self._flat(filled)

    def decode(
        self,
        states: tuple[State, ...],
        cache: Cache,
        inputs: Callable[[State], tuple[Int[Array, "b"], Int[Array, "b"]]],
        more: Callable[[Sequence[State]], Bool[Array, ""]],
        record: Callable[[State, Float[Array, "b D"]], State],
        rounds: int,
    ) -> tuple[tuple[State, ...], Cache]:
        """Draw up to so many tokens for every row, while the groups' states say that there is more to draw.

        `inputs` gives the token that each row drew last and its position; `record` draws the next ones from the
        hidden states that left the last stage. The group that enters first leaves in the round that it entered in, the
        others in the next: behind the last one there is a round that they leave in and nobody enters.
        """
        p = self._stages

        def round_(carry):
            # Before, now: whether groups enter in these rounds.
            turn, before, now, states, slots, cache = carry
            states, pairs = list(states), self._of_stages(cache)
            for tick in range(p):
                tokens, positions = zip(*map(inputs, states), strict=True)
                entering = self._backbone.start(
                    tokens[tick][:, None],
                    self._around(attention.one_token(self._platform, positions[tick], self._layout)),
                )
                slots, pairs[tick] = self._tick(
                    slots,
                    entering,
                    self._told(positions, tick)[..., None],
                    pairs[tick],
                    lambda positions: attention.one_token(self._platform, positions[:, 0], self._layout),
                )
                leaving = (tick + 1) % p
                entered = now if leaving == 0 else before
                new = record(states[leaving], self._leaving(slots[-1, :, 0]))
                states[leaving] = jax.tree.map(
                    lambda new, old, entered=entered: jnp.where(entered, new, old), new, states[leaving]
                )
            next_ = now & (turn + 1 < rounds) & more(states)
            return turn + 1, now, next_, tuple(states), slots, self._flat(pairs)

        rows = jax.tree.leaves(inputs(states[0]))[0].shape[0]
        start = (jnp.int32(0), jnp.bool_(False), more(states), states, self._empty_slots(rows, 1), cache)
        *_, states, _, cache = jax.lax.while_loop(lambda carry: carry[1] | carry[2], round_, start)
        return states, cache

    def _of_stages(self, cache: Cache) -> list[Any]:
        """Return, per pair that all stages need at a tick, each layer's keys and values [p, b, K, S, H]."""

        def apart(array: Array) -> Array:
            return self._layout.constrain(array.reshape(self._stages, -1, *array.shape[1:]), _OF_STAGES)

        pairs = jax.tree.map(apart, cache)
        return [tuple(pairs[k :: self._stages]) for k in range(self._stages)]

    def _flat(self, pairs: Sequence[Any]) -> Cache:
        """Undo `_of_stages`."""
        flat = [pairs[k][j] for j in range(len(self._layers)) for k in range(self._stages)]

        def together(array: Array) -> Array:
            return self._layout.constrain(array.reshape(-1, *array.shape[2:]), NAMES)

        return tuple(jax.tree.map(together, flat))

    def _empty_slots(self, rows: int, width: int) -> Float[Array, "p b T D"]:
        config = self._backbone.config
        shape = (self._stages, rows, width, config.width)
        return self._layout.constrain(jnp.zeros(shape, config.compute_dtype), _SLOTS)

    def _tick(
        self,
        slots: Float[Array, "p b T D"],
        entering: Float[Array, "b T D"],
        positions: Int[Array, "p b T"] | Int[Array, "1 T"],
        pairs: Any,
        attend: Callable[[Int[Array, "b T"]], Attend],
    ) -> tuple[Float[Array, "p b T D"], Any]:
        """Hand every slot on, let a group in, and run all stages side by side."""
        first = jnp.arange(self._stages).reshape(-1, 1, 1, 1) == 0
        slots = self._layout.constrain(jnp.where(first, entering, jnp.roll(slots, 1, axis=0)), _SLOTS)

        def stage(x, weights, positions, pairs, varying):
            rest = iter(varying)
            local = [kind if isinstance(kind, bool) else next(rest) for kind in self._local]
            around = self._around(attend(positions))
            return self._backbone.through(x, positions, pairs, weights, local, around)

        varying = [kind for kind in self._local if not isinstance(kind, bool)]
        apart = (0, 0, 0 if positions.ndim == 3 else None, 0, 0)
        every_stage = jax.vmap(stage, apart, spmd_axis_name=self._layout.axes["layers"])
        slots, pairs = every_stage(slots, self._layers, positions, pairs, varying)
        pairs = jax.tree.map(lambda array: self._layout.constrain(array, _OF_STAGES), pairs)
        return self._layout.constrain(slots, _SLOTS), pairs

    def _told(self, of_groups: Sequence[Int[Array, "b"]], tick: int) -> Int[Array, "p b"]:
        """Return what each stage is to know of the group that it works on; all devices know it of all groups."""
        stages = jnp.arange(self._stages)[:, None]
        here = jnp.broadcast_to(of_groups[tick], (self._stages, *of_groups[tick].shape))
        for stage in range(1, self._stages):
            here = jnp.where(stages == stage, of_groups[(tick - stage) % self._stages], here)
        return self._layout.constrain(here, ("layers", "batch"))

    def _leaving(self, hidden: Float[Array, "b D"]) -> Float[Array, "b D"]:
        """Return what leaves the last stage, normed, on the devices of all: each holds a part of the vocabulary."""
        return self._backbone.final_norm(self._layout.constrain(hidden, ("batch", None)))
