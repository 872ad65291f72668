"""Rollout weights with each layer in arrays of its own, made of stacks one at a time.

Where generation keeps stages, an array has the first, or second, … layer of every stage.

Knows trees of arrays and their layout; no cache, no sampling.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jaxtyping import Array

from jaxflow.engine.sharding import Layout
from jaxflow.engine.state import abstract_arrays
from jaxflow.models.transformer import Model, Params, Unstacked


def _without_layers(tree: Params) -> Params:
    backbone = {name: leaf for name, leaf in tree["backbone"].items() if name != "layers"}
    return {**tree, "backbone": backbone}


class Unstacker:
    """Takes one model's weights in a generation layout apart; on a CPU, large matrices are turned on the way."""

    def __init__(self, model: Model, layout: Layout):
        self._model, self._stages = model, layout.stages
        self._count = model.config.layers // layout.stages  # layers of a stage
        self._turned = layout.mesh.devices.flat[0].platform == "cpu"  # GPUs multiply either way alike
        of_stages = layout.stages > 1
        names = model.names["backbone"]["layers"] if of_stages else model.layer_names(self._turned)
        self._rest, self._own = layout.weights(_without_layers(model.names)), layout.weights(names)
        stacks, self._structure = jax.tree_util.tree_flatten_with_path(model.shapes["backbone"]["layers"])
        self._cutters = [
            jax.jit(functools.partial(self._cut, path), out_shardings=[shardings] * self._count)
            for (path, _), shardings in zip(stacks, self._structure.flatten_up_to(self._own), strict=True)
        ]

    def _cut(self, path: tuple[Any, ...], stack: Array) -> list[Any]:
        if self._stages > 1:
            of_stages = stack.reshape(self._stages, self._count, *stack.shape[1:])
            return [of_stages[:, i] for i in range(self._count)]
        return [self._model.layer_weight(path, stack, i, self._turned) for i in range(self._count)]

    def __call__(self, params: Params, keep: Params) -> Unstacked:
        """Return the weights with their layers unstacked.

        A stack is deleted as its layers are there, if it is none of the arrays to `keep`: then the weights exist
        once, and one stack twice for a moment. What is no layer's is passed on as it is.
        """
        kept = set(map(id, jax.tree.leaves(keep)))
        parts = []
        for stack, cut in zip(jax.tree.leaves(params["backbone"]["layers"]), self._cutters, strict=True):
            own = cut(stack)
            if id(stack) not in kept:
                jax.block_until_ready(own)
                stack.delete()
            parts.append(own)
        layers = [self._structure.unflatten(one) for one in zip(*parts, strict=True)]
        return Unstacked(_without_layers(params), layers)

    def abstract(self, dtype: str) -> Unstacked:
        """Return shapes and places of unstacked weights in this dtype, of which none exists."""
        wanted = jax.tree.map(lambda leaf: leaf.update(dtype=dtype), self._model.shapes)
        stacks = jax.tree.leaves(wanted["backbone"]["layers"])
        parts = [jax.eval_shape(cut, stack) for cut, stack in zip(self._cutters, stacks, strict=True)]
        layers = [self._structure.unflatten(one) for one in zip(*parts, strict=True)]
        return Unstacked(
            abstract_arrays(_without_layers(wanted), self._rest),
            [abstract_arrays(layer, self._own) for layer in layers],
        )
