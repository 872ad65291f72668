"""All arrays that a trained model is made of, where they live, and how they are born, saved and restored.

Knows no loss and no algorithm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxflow.engine.checkpoint import restore_arrays, save_arrays
from jaxflow.engine.sharding import Layout
from jaxflow.models.adapters import is_adapter, join, select
from jaxflow.models.description import describe_directory, is_checkpoint, write_description
from jaxflow.models.families import SCALAR, TOKENS
from jaxflow.models.transformer import Model, Params
from jaxflow.models.weights_in import ReadReport, head_of, read_weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What the next optimizer update depends on."""

    params: Params  # float32 masters; beside adapters, in their own dtype, the weights that stay as they are
    optimizer_state: Any  # optax, float32 moments
    updates: Int[Array, ""]  # int32, updates tried so far: skipped ones count
    skipped: Int[Array, ""]  # int32, updates skipped in a row because something was not finite


def new_weights(model: Model, layout: Layout, seed: int, stream: int) -> Params:
    """Create random float32 weights, each shard on its device; `stream` keeps models of one seed apart."""
    create = jax.jit(model.create, out_shardings=layout.weights(model.names))
    return create(jax.random.fold_in(jax.random.key(seed), stream))


def new_head(model: Model, layout: Layout, seed: int, stream: int) -> Params:
    """Create the head that `new_weights` would, under the same top-level name, and nothing else."""
    shardings = layout.weights(model.names)["head"]
    create = jax.jit(lambda key: model.create(key)["head"], out_shardings=shardings)
    return {"head": create(jax.random.fold_in(jax.random.key(seed), stream))}


def with_adapters(model: Model, layout: Layout, base: Params, seed: int, stream: int) -> Params:
    """Return the base's weights with the adapters that `new_weights` would create; as they are if there are none."""
    if model.adapters is None:
        return base

    def adapters(tree: Any) -> Any:
        return select(tree, is_adapter)

    create = jax.jit(
        lambda key: adapters(model.create(key)), out_shardings=adapters(layout.weights(model.names))
    )
    return join(base, create(jax.random.fold_in(jax.random.key(seed), stream)))


def state_shardings(model: Model, layout: Layout, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the sharding of every leaf of a TrainState: moments lie where their weights lie."""
    weights = layout.weights(model.names)
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, model.trained(model.shapes)),
        model.trained(weights),
        transform_non_params=lambda _: layout.replicated,
    )
    return TrainState(weights, moments, layout.replicated, layout.replicated)


def new_state(
    model: Model, layout: Layout, optimizer: optax.GradientTransformation, params: Params
) -> TrainState:
    """Return the state before the first update; takes the params over."""
    shardings = state_shardings(model, layout, optimizer)
    init = jax.jit(optimizer.init, out_shardings=shardings.optimizer_state)
    zero = jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=layout.replicated)
    return TrainState(params, init(model.trained(params)), zero(), zero())


def abstract_arrays(shapes: Any, shardings: Any) -> Any:
    """Return shapes with their shardings, for programs to be lowered from and files to be read into."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def abstract_state(model: Model, layout: Layout, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the shape and place of every leaf of a TrainState, of which none exists."""
    count = jax.ShapeDtypeStruct((), jnp.int32)
    moments = jax.eval_shape(optimizer.init, model.trained(model.shapes))
    shapes = TrainState(model.shapes, moments, count, count)
    return abstract_arrays(shapes, state_shardings(model, layout, optimizer))


def _beside_weights(state: TrainState) -> dict[str, Any]:
    return {"optimizer_state": state.optimizer_state, "updates": state.updates, "skipped": state.skipped}


def save_state(directory: Path, model: Model, state: TrainState) -> None:
    """Write the whole state below `directory`; its `weights` folder is one that `restore_weights` reads.

    Of a model with adapters it is written what is trained, into `adapters` instead: the rest is where it came from.
    """
    folder = "weights" if model.adapters is None else "adapters"
    save_weights(directory / folder, model, model.trained(state.params))
    save_arrays(directory / "optimizer", _beside_weights(state))


def restore_state(
    directory: Path,
    model: Model,
    layout: Layout,
    optimizer: optax.GradientTransformation,
    frozen: Params,
) -> TrainState:
    """Read a state onto this mesh, whatever mesh it was saved from; UserError if it is another model's.

    `frozen` are the weights that stay as they are, which no state holds; empty where all are trained.
    """
    if model.adapters is None:
        params = restore_weights(directory / "weights", model, layout, tuple(model.shapes))
    else:
        wanted = model.trained(abstract_arrays(model.shapes, layout.weights(model.names)))
        parts = {part: restore_arrays(directory / "adapters" / part, tree) for part, tree in wanted.items()}
        params = join(frozen, parts)
    abstract = abstract_state(model, layout, optimizer)
    return TrainState(params, **restore_arrays(directory / "optimizer", _beside_weights(abstract)))


def save_weights(directory: Path, model: Model, params: Params) -> None:
    """Write weights alone, and which model they are.

    Backbone and head are apart: another role may take the backbone under its own head.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_description(directory, model.config, head_of(model))
    for part, tree in params.items():
        save_arrays(directory / part, tree)


def restore_weights(directory: Path, model: Model, layout: Layout, parts: Collection[str]) -> Params:
    """Read these top-level parts (`backbone`, `head`) of weights that `save_weights` wrote onto this mesh.

    What they hold is cast to the model's dtypes. Raises UserError if they are another model's.
    """
    abstract = abstract_arrays(model.shapes, layout.weights(model.names))
    stored = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.float32), abstract)
    params = {part: restore_arrays(directory / part, stored[part]) for part in parts if part in stored}
    wanted = {part: abstract[part] for part in params}
    return jax.tree.map(lambda leaf, asked: leaf.astype(asked.dtype), params, wanted)


def load_weights(
    directory: Path, model: Model, layout: Layout, parts: Collection[str]
) -> tuple[Params, ReadReport | None]:
    """Read these parts of weights of either kind: saved ones, or a Hugging Face checkpoint and what that took.

    A scalar head over weights that end in tokens is a fresh one, which is zero. Raises UserError if they are another
    model's.
    """
    if is_checkpoint(directory):
        return read_weights(directory, model, layout.weights(model.names), parts)
    if head_of(model) == SCALAR and "head" in parts and describe_directory(directory).head == TOKENS:
        backbone = restore_weights(directory, model, layout, ("backbone",))
        return {**backbone, **new_head(model, layout, 0, 0)}, None
    return restore_weights(directory, model, layout, parts), None
