"""Mixtures of experts on a mesh: each device runs the experts, and of each the part of its width, that it holds.

Tokens are gathered over the axes that experts are cut over, every device computes its experts' part of all of
them, and the sum over devices is scattered back: two collectives of the tokens' own size, whatever the routing, and
no token is dropped. Knows a layout and the arithmetic of experts; no model, no loss.
"""

from __future__ import annotations

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
    batch, experts = layout.axes["batch"], layout.axes["experts"]
    embed, mlp = layout.axes["embed"], layout.axes["mlp"]

    def part(x: Array, logits: Array, weights: ExpertWeights, routing: Routing) -> Array:
        tokens, choices = jax.tree.map(
            lambda a: jax.lax.all_gather(a, experts, tiled=True),
            (x.reshape(-1, x.shape[-1]), choose(logits.reshape(-1, logits.shape[-1]), routing)),
        )
        whole = ExpertWeights(
            gate=jax.lax.all_gather(weights.gate, embed, axis=1, tiled=True),
            up=jax.lax.all_gather(weights.up, embed, axis=1, tiled=True),
            down=jax.lax.all_gather(weights.down, embed, axis=2, tiled=True),
        )
        first = jax.lax.axis_index(experts) * weights.gate.shape[0]
        mixed = run_experts(tokens, choices, whole, first, routing.activation)
        mixed = jax.lax.psum_scatter(mixed, experts, scatter_dimension=0, tiled=True)
        return jax.lax.psum(mixed, mlp).reshape(x.shape)

    def mix(x: Array, logits: Array, weights: ExpertWeights, routing: Routing) -> Array:
        rows = PartitionSpec(batch)
        specs = ExpertWeights(*(layout.spec(names) for names in (_NAMES.gate, _NAMES.up, _NAMES.down)))
        run = jax.shard_map(
            functools.partial(part, routing=routing),
            mesh=layout.mesh,
            in_specs=(rows, rows, specs),
            out_specs=rows,
        )
        return run(x, logits, weights)

    return mix
