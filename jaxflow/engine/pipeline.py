"""Pipeline parallelism as one compiled program: every stage works at every tick, on rows of its own.

Layers [L] are seen as [p, L/p] stages, activations as a buffer [p, b, T, D] with a slot per stage; both lie cut
over the stages' axes. A tick runs all stages side by side (`vmap`) and hands each slot to the next stage: one
permutation between neighbours. m micro-batches take m + p − 1 ticks (GPipe, arXiv 1811.06965; as one SPMD program:
GSPMD §3.3, arXiv 2105.04663). Only batch and layers are touched, so tensor, data, fsdp, experts and recomputation
go on inside a stage as they do without one. Knows a layout and blocks; no model, no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxflow.engine.batching import MicroBatch
from jaxflow.engine.sharding import Layout
from jaxflow.models.layers import Block, OverLayers, scan_layers

_MICROBATCHES_PER_STAGE = 4  # at most: a bubble below a fifth, and micro-batches no smaller than that takes


def microbatches(rows: int, stages: int) -> int:
    """Return m, the equal parts that a device's rows pass the stages in: the most, up to 4 for each stage."""
    return max(m for m in range(1, _MICROBATCHES_PER_STAGE * stages + 1) if rows % m == 0)


def bubble(passes: Sequence[MicroBatch], stages: int) -> float:
    """Return the share of the time of these passes that a stage idles: (p − 1) / (m + p − 1) of each."""
    busy, ticks = 0.0, 0.0
    for one in passes:
        m = microbatches(one.rows.shape[1], stages)
        tokens = one.rows.shape[1] * one.padded_length
        busy += tokens
        ticks += tokens / m * (m + stages - 1)
    return 1.0 - busy / ticks


def over_stages(layout: Layout) -> OverLayers:
    """Return the way over the layers of a model in this layout: one after the other, or as a pipeline."""
    return scan_layers if layout.stages == 1 else _Pipeline(layout)


class _Pipeline:
    """A way over the layers through the stages of a mesh."""

    def __init__(self, layout: Layout):
        self._layout, self._stages = layout, layout.stages

    def __call__(self, block: Block, x: Float[Array, "B T D"], stacked: Any) -> Float[Array, "B T D"]:
        rows, stages = x.shape[0], self._stages
        m = microbatches(max(1, rows // self._layout.replicas), stages)
        # Each device's rows are dealt to the micro-batches in turn, so that none leaves its device.
        cut = x.reshape(rows // m, m, *x.shape[1:]).swapaxes(0, 1)
        cut = self._layout.constrain(cut, (None, "batch", None, None))
        weights = jax.tree.map(lambda w: w.reshape(stages, w.shape[0] // stages, *w.shape[1:]), stacked)
        every_stage = jax.vmap(
            lambda x, weights: scan_layers(block, x, weights),
            spmd_axis_name=self._layout.axes["layers"],
        )

        def tick(slots: Float[Array, "p b T D"], arriving: Float[Array, "b T D"]):
            slots = every_stage(self._shifted(slots, arriving), weights)
            slots = self._layout.constrain(slots, ("layers", "batch", None, None))
            return slots, self._last(slots)

        # Behind the last micro-batch zeros arrive; they never come out again.
        arriving = jnp.pad(cut, ((0, stages - 1), *((0, 0),) * x.ndim))
        empty = self._layout.constrain(
            jnp.zeros((stages, *cut.shape[1:]), x.dtype), ("layers", "batch", None, None)
        )
        _, leaving = jax.lax.scan(tick, empty, arriving)
        done = leaving[stages - 1 :].swapaxes(0, 1).reshape(x.shape)
        return self._layout.constrain(done, ("batch", None, None))

    def _shifted(self, slots: Float[Array, "p b T D"], arriving: Float[Array, "b T D"]):
        """Hand every slot to the next stage; the first stage takes what arrives."""
        first = jnp.arange(self._stages).reshape(-1, 1, 1, 1) == 0
        slots = jnp.where(first, arriving, jnp.roll(slots, 1, axis=0))
        return self._layout.constrain(slots, ("layers", "batch", None, None))

    def _last(self, slots: Float[Array, "p b T D"]) -> Float[Array, "b T D"]:
        """Return what leaves the last stage, on the devices of all: each holds a part of the vocabulary."""
        return self._layout.constrain(slots[-1], ("batch", None, None))
