"""Pipeline parallelism as one compiled program: every stage works at every tick, on rows of its own.

Layers [L] are seen as [p, L/p] stages, activations as a buffer [p, R, b, T, D] with a slot for each stage and replica;
both lie cut over the stages' axes. A tick runs all stages side by side (`vmap`) and hands each slot to the next stage:
one permutation between neighbours. m micro-batches take m + p − 1 ticks (GPipe, arXiv 1811.06965; as one SPMD program:
GSPMD §3.3, arXiv 2105.04663).

Replicas are a dimension of their own (`vmap` again), and each has the weights: they are gathered over fsdp once before
the ticks, and what every tick adds to a replica's gradients stays with it until the ticks are over. Told apart by rows
alone, replicas would gather in every tick, and sum their gradients in every tick. Tensor and expert axes and
recomputation go on inside a stage as they do without one. Knows a layout and blocks; no model, no loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxflow.engine.batching import MicroBatch
from jaxflow.engine.sharding import Layout
from jaxflow.models.layers import Block, OverLayers, Stream, scan_layers

_MICROBATCHES_PER_STAGE = 4  # at most: a bubble below a fifth, and micro-batches no smaller than that takes
_SLOTS = ("layers", "replicas", "batch")  # and whatever a row has


def microbatches(rows: int, stages: int) -> int:
    """Return m, the equal parts that a device's rows pass the stages in, up to 4 for each stage.

    Of these, the one in which (m + p − 1) ticks of ⌈rows / m⌉ rows are the least work: rows of padding fill the last.
    """
    most = min(rows, _MICROBATCHES_PER_STAGE * stages)
    return min(range(most, 0, -1), key=lambda m: _row_ticks(rows, m, stages))


def _row_ticks(rows: int, m: int, stages: int) -> int:
    """Return the time of a pass, in that of one row on one stage."""
    return (m + stages - 1) * math.ceil(rows / m)


def bubble(passes: Sequence[MicroBatch], stages: int) -> float:
    """Return the share of the time of these passes that a stage has no row: (p − 1) / (m + p − 1) where m divides."""
    busy, ticks = 0.0, 0.0
    for one in passes:
        rows = one.rows.shape[1]
        busy += rows * one.padded_length
        ticks += _row_ticks(rows, microbatches(rows, stages), stages) * one.padded_length
    return 1.0 - busy / ticks


def over_stages(layout: Layout) -> OverLayers:
    """Return the way over the layers of a model in this layout: one after the other, or as a pipeline."""
    return scan_layers if layout.stages == 1 else _Pipeline(layout)


def inside_stages(layout: Layout) -> Layout:
    """Return the layout of what a block sees: in a pipeline one replica's rows, with weights that are gathered."""
    return layout if layout.stages == 1 else _replica_apart(layout)


def _replica_apart(layout: Layout) -> Layout:
    """Return the layout in which replicas are a dimension; those that experts are cut over hold different ones."""
    rows, experts = layout.axes["batch"], layout.axes["experts"]
    apart = {
        "replicas": tuple(axis for axis in rows if axis not in experts),
        "batch": tuple(axis for axis in rows if axis in experts),
        "embed": (),
    }
    return dataclasses.replace(layout, axes={**layout.axes, **apart})


class _Pipeline:
    """A way over the layers through the stages of a mesh."""

    def __init__(self, layout: Layout):
        self._outer, self._layout, self._stages = layout, _replica_apart(layout), layout.stages

    def __call__(self, block: Block, stream: Stream, stacked: Any) -> Stream:
        """Run all layers; `block` runs in the layout `inside_stages`."""
        stages, axes = self._stages, self._layout.axes
        cut = jax.tree.map(self._cut, stream)
        weights = jax.tree.map(self._of_replicas, stacked)

        # One dimension for stages and replicas, each of which lies on devices of its own.
        places = self._ways("layers") * self._ways("replicas")
        weights = jax.tree.map(lambda weight: weight.reshape(places, *weight.shape[2:]), weights)
        at_every_place = jax.vmap(
            lambda stream, weights: scan_layers(block, stream, weights),
            spmd_axis_name=(*axes["layers"], *axes["replicas"]),
        )

        def tick(slots: Stream, arriving: Stream):
            slots = jax.tree.map(self._shifted, slots, arriving)
            at_places = jax.tree.map(lambda x: x.reshape(places, *x.shape[2:]), slots)
            done = at_every_place(at_places, weights)
            slots = jax.tree.map(lambda x, like: self._bound(x.reshape(like.shape), _SLOTS), done, slots)
            # What leaves the last stage, on the devices of all: each holds a part of the vocabulary.
            return slots, jax.tree.map(lambda x: self._bound(x[-1], _SLOTS[1:]), slots)

        def followed(x: Float[Array, "m R b T *D"]) -> Float[Array, "m+p-1 R b T *D"]:
            """Let zeros arrive behind the last micro-batch; they never come out again."""
            return jnp.pad(x, ((0, stages - 1), *((0, 0),) * (x.ndim - 1)))

        def empty(x: Float[Array, "m R b T *D"]) -> Float[Array, "p R b T *D"]:
            return self._bound(jnp.zeros((stages, *x.shape[1:]), x.dtype), _SLOTS)

        _, leaving = jax.lax.scan(tick, jax.tree.map(empty, cut), jax.tree.map(followed, cut))
        return jax.tree.map(lambda x, whole: self._whole(x[stages - 1 :], len(whole)), leaving, stream)

    def _bound(self, x: Array, names: tuple[str | None, ...]) -> Array:
        return self._layout.constrain(x, (*names, *(None,) * (x.ndim - len(names))))

    def _ways(self, name: str) -> int:
        return math.prod(self._layout.mesh.shape[axis] for axis in self._layout.axes[name])

    def _cut(self, x: Float[Array, "B T *D"]) -> Float[Array, "m R b T *D"]:
        """Deal each device's rows to the micro-batches in turn, so that none leaves it; zeros fill the last ones."""
        replicas, experts = self._ways("replicas"), self._ways("batch")
        rows = -(-x.shape[0] // (replicas * experts))
        m = microbatches(rows, self._stages)
        untouched = ((0, 0),) * (x.ndim - 1)
        x = jnp.pad(x, ((0, rows * replicas * experts - x.shape[0]), *untouched))
        x = x.reshape(replicas, experts, rows, *x.shape[1:])
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -rows % m), *untouched))
        x = x.reshape(replicas, experts, -1, m, *x.shape[3:])
        x = jnp.moveaxis(x, 3, 0).reshape(m, replicas, -1, *x.shape[4:])
        return self._bound(x, (None, *_SLOTS[1:]))

    def _whole(self, parts: Float[Array, "m R b T *D"], rows: int) -> Float[Array, "B T *D"]:
        """Put the rows of all micro-batches back into their order, those of padding left out."""
        replicas, experts = self._ways("replicas"), self._ways("batch")
        m, row = parts.shape[0], parts.shape[3:]
        each = -(-rows // (replicas * experts))
        x = jnp.moveaxis(parts.reshape(m, replicas, experts, -1, *row), 0, 3)
        x = x.reshape(replicas, experts, -1, *row)[:, :, :each]
        x = x.reshape(-1, *row)[:rows]
        return self._outer.constrain(x, ("batch", *(None,) * len(row)))

    def _of_replicas(self, weight: Array) -> Array:
        """Give every replica the stages' weights [p, R, L/p, …]; its gradient is the sum over them, taken once."""
        weight = weight.reshape(self._stages, 1, -1, *weight.shape[1:])
        weight = jnp.broadcast_to(weight, (weight.shape[0], self._ways("replicas"), *weight.shape[2:]))
        axes, free = self._layout.axes, (PartitionSpec.UNCONSTRAINED,) * (weight.ndim - 3)
        spec = PartitionSpec(axes["layers"], axes["replicas"], None, *free)
        return jax.lax.with_sharding_constraint(weight, NamedSharding(self._layout.mesh, spec))

    def _shifted(self, slots: Float[Array, "p R b T *D"], arriving: Float[Array, "R b T *D"]):
        """Hand every slot to the next stage; the first stage takes what arrives."""
        first = jnp.arange(self._stages).reshape(-1, *(1,) * (slots.ndim - 1)) == 0
        slots = jnp.where(first, arriving, jnp.roll(slots, 1, axis=0))
        return self._bound(slots, _SLOTS)
