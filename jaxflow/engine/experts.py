"""Mixtures of experts on a mesh: each device runs the experts, and of each the part of its width, that it holds.

Tokens are gathered over the axes that experts are cut over, every device computes its experts' part of all of
them, and the sum over devices is scattered back: two collectives of the tokens' own size, whatever the routing, and
no token is dropped. Knows a layout and the arithmetic of experts; no model, no loss.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxflow.engine.sharding import Layout
from jaxflow.models.experts import ExpertWeights, Routing, choose, run_experts
from jaxflow.models.layers import MixExperts

_NAMES = ExpertWeights(
    gate=("experts", "embed", "mlp"), up=("experts", "embed", "mlp"), down=("experts", "mlp", "embed")
)


def experts_over(layout: Layout) -> MixExperts:
    """Return how the experts of a model in this layout are mixed.

    Per device and layer, with n tokens of its own, X ways of the experts and k experts per token: X·n tokens are
    received and X·n·k rows sorted, of which the experts held here multiply theirs alone.
    """
    cut = _without_trivial_axes(layout)
    experts, embed, mlp = (cut.axes[name] for name in ("experts", "embed", "mlp"))

    def part(x: Array, logits: Array, weights: ExpertWeights, routing: Routing) -> Array:
        # Said here, the sum of gradients over the ranks of a width is of each token once, not of its k rows.
        x, logits = (jax.lax.pcast(a, mlp, to="varying") if mlp else a for a in (x, logits))
        tokens, choices = jax.tree.map(
            lambda a: _gathered(a, experts, 0),
            (x.reshape(-1, x.shape[-1]), choose(logits.reshape(-1, logits.shape[-1]), routing)),
        )
        whole = ExpertWeights(
            gate=_gathered(weights.gate, embed, 1),
            up=_gathered(weights.up, embed, 1),
            down=_gathered(weights.down, embed, 2),
        )
        first = jax.lax.axis_index(experts) * weights.gate.shape[0] if experts else 0
        mixed = run_experts(tokens, choices, whole, first, routing.activation)
        if experts:
            mixed = jax.lax.psum_scatter(mixed, experts, scatter_dimension=0, tiled=True)
        return (jax.lax.psum(mixed, mlp) if mlp else mixed).reshape(x.shape)

    def mix(x: Array, logits: Array, weights: ExpertWeights, routing: Routing) -> Array:
        rows = PartitionSpec(cut.axes["batch"])
        specs = ExpertWeights(*(cut.spec(names) for names in (_NAMES.gate, _NAMES.up, _NAMES.down)))
        run = jax.shard_map(
            functools.partial(part, routing=routing),
            mesh=layout.mesh,
            in_specs=(rows, rows, specs),
            out_specs=rows,
        )
        return run(x, logits, weights)

    return mix


def _without_trivial_axes(layout: Layout) -> Layout:
    """Leave out axes of one device: a collective over them would be compiled all the same."""
    axes = {
        name: tuple(axis for axis in cut if layout.mesh.shape[axis] > 1) for name, cut in layout.axes.items()
    }
    return dataclasses.replace(layout, axes=axes)


def _gathered(x: Array, axes: tuple[str, ...], dimension: int) -> Array:
    return jax.lax.all_gather(x, axes, axis=dimension, tiled=True) if axes else x
