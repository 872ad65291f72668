"""One decoder that trains, scores, prefills and decodes through the same blocks.

Knows no mesh, no cache layout, no loss and no sampling: what depends on these comes in as `layers.Surroundings`.
Outside this room a model is a `Model` (its description) and a nested dict of arrays (its weights).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxflow.models.adapters import Adapters, is_adapter, join, select
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.decoder_layer import DecoderLayer, Place
from jaxflow.models.heads import ScalarHead, TokenHead
from jaxflow.models.layers import RMSNorm, Surroundings, Turned, named_weight, turn
from jaxflow.models.rotary import Angles, frequencies, rotary_angles, scaled_frequencies

Params = Mapping[str, Any]
"""Weights: a nested dict of arrays, `backbone` and `head` at the top, layers stacked on a leading axis L."""

LayerWeights = Sequence[Mapping[str, Any]]
"""Of each layer its own weights: nested dicts of arrays without the leading axis."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unstacked:
    """Weights whose layers are arrays of their own: a loop over tokens reads them where they lie.

    Out of stacks XLA would cut every layer ahead of the loop and hold it twice, or cut it anew for every token.
    """

    rest: Params  # all that is no layer's: embedding, final norm, head
    layers: LayerWeights


# The matrices of a layer, and how many dimensions their products sum over.
_SUMMED = dict.fromkeys(("query", "key", "value", "gate", "up", "down"), 1) | {"output": 2}
_TURNED_FROM = 1 << 18  # numbers: a weight that a core's cache holds gains nothing


class _Places:
    """Where the layers stand: those that see all and those that see a window may turn their heads differently.

    Layers of one kind say so statically. Where both kinds are scanned over one compiled block, each layer brings
    its kind along: masks and angles are chosen by it.
    """

    def __init__(self, config: DecoderConfig, positions: Int[Array, "B T"]):
        self._config = config
        self._whole = rotary_angles(positions, scaled_frequencies(config))
        self._local = self._whole
        if config.local_rope_theta > 0.0:
            self._local = rotary_angles(positions, frequencies(config.head_width, config.local_rope_theta))

    def per_layer(self) -> Bool[Array, "L"] | None:
        """Return what each layer brings along of its kind; None where all are of one."""
        kinds = self._config.local_layers
        return jnp.asarray(kinds) if len(set(kinds)) > 1 else None

    def at(self, local: bool | Bool[Array, ""] | None) -> Place:
        """Return where a layer of this kind stands; None: of the kind that all are of."""
        local = self._config.local_layers[0] if local is None else local
        return Place(self._angles(local), local)

    def _angles(self, local: bool | Bool[Array, ""]) -> Angles:
        if isinstance(local, bool):
            return self._local if local else self._whole
        if self._local is self._whole:
            return self._whole
        return jax.tree.map(lambda a, b: jnp.where(local, a, b), self._local, self._whole)


class Backbone(nnx.Module):
    """Embedding, stacked blocks, final norm: tokens to hidden states."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, adapters: Adapters | None):
        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stacked(layer_rngs: nnx.Rngs) -> DecoderLayer:
            return DecoderLayer(config, layer_rngs, adapters)

        shape = (config.padded_vocabulary_size, config.width)
        table = 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.embedding = named_weight(table, ("vocabulary", "embed"))
        self.layers = stacked(rngs)
        self.final_norm = RMSNorm(config.width, config.norm_epsilon, config.norm_offset)
        self.config = config

    def start(self, tokens: Int[Array, "B T"], around: Surroundings) -> Float[Array, "B T D"]:
        """Look tokens up: what the first layer is given."""
        # The table is sharded over both its dimensions at rest; gathering the width first keeps the look-up
        # a local one (sharded over both, XLA would rematerialise the whole activation).
        table = around.constrain(self.embedding.get_value(), ("vocabulary", None))
        x = jnp.take(table, tokens, axis=0).astype(self.config.compute_dtype)
        if self.config.embedding_scale:
            x = x * jnp.asarray(self.config.width**0.5, x.dtype)
        return around.constrain(x, ("batch", None, None))

    def __call__(self, tokens: Int[Array, "B T"], around: Surroundings) -> Float[Array, "B T D"]:
        """Return hidden states of whole sequences that begin at position 0, one compiled block for all layers."""
        return self.with_notes(tokens, around)[0]

    def with_notes(self, tokens: Int[Array, "B T"], around: Surroundings):
        """Return hidden states of whole sequences, and of a mixture what was noted of its routing; else None."""
        # One row of positions for all rows: however the rows are cut, their angles are the same.
        places = _Places(self.config, jnp.arange(tokens.shape[1])[None])
        definition, stacked = nnx.split(self.layers)
        inside = around if around.of_blocks is None else around.of_blocks

        def block(stream, own):
            (weights, local), (x, *totals) = own, stream
            x, _, noted = nnx.merge(definition, weights)(x, places.at(local), None, inside)
            return x, *(total + noted for total in totals)

        # Without remat the products with weights are kept, no more: what lies between them is cheaper to compute
        # again than to write into the scan's stacks and read back, and attention's [T, T] would be among it.
        policy = None if self.config.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        block = jax.checkpoint(block, prevent_cse=False, policy=policy)
        own = (stacked, places.per_layer())
        notes = inside.routing_notes if self.config.experts > 0 else None
        nothing = () if notes is None else (jnp.zeros((*tokens.shape, *notes.shape), jnp.float32),)
        x, *noted = around.over_layers(block, (self.start(tokens, around), *nothing), own)
        return self.final_norm(x), noted[0] if noted else None

    def with_carry(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        carries: Sequence[Any],
        layer_weights: LayerWeights,
        around: Surroundings,
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
        """Return hidden states and each layer's new carry (its cache)."""
        x, kinds = self.start(tokens, around), self.config.local_layers
        x, carries = self.through(x, positions, carries, layer_weights, kinds, around)
        return self.final_norm(x), carries

    def through(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        carries: Sequence[Any],
        layer_weights: LayerWeights,
        local: Sequence[bool | Bool[Array, ""]],
        around: Surroundings,
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
        """Run the layers with these weights, of which those that are `local` see their window only, unrolled.

        A cache that went through `scan` would exist twice; unrolled, each layer's is updated in place.
        """
        places, (definition, _) = _Places(self.config, positions), nnx.split(self.layers)
        carries = list(carries)
        for i, (weights, kind) in enumerate(zip(layer_weights, local, strict=True)):
            x, carries[i], _ = nnx.merge(definition, weights)(x, places.at(kind), carries[i], around)
        return x, tuple(carries)


class LanguageModel(nnx.Module):
    """A decoder that gives each position a distribution over the next token."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, adapters: Adapters | None):
        self.backbone = Backbone(config, rngs, adapters)
        self.head = TokenHead(config, rngs)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Return float32 logits over the padded vocabulary; rows of padding are −1e30."""
        return self.head(hidden, self.backbone.embedding.get_value())


class ScalarModel(nnx.Module):
    """A decoder that gives each position one number: a value or a reward."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, adapters: Adapters | None):
        self.backbone = Backbone(config, rngs, adapters)
        self.head = ScalarHead(config)

    def scalars(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
        """Return one float32 number per hidden state."""
        return self.head(hidden)


@dataclasses.dataclass(frozen=True)
class Model:
    """The description of a model: no weights, only what they are and how to bind them."""

    config: DecoderConfig
    kind: type[LanguageModel] | type[ScalarModel]
    definition: nnx.GraphDef
    shapes: Params  # jax.ShapeDtypeStruct per weight
    names: Mapping[str, Any]  # tuple of logical axis names per weight, same tree
    adapters: Adapters | None  # None: all weights are trained

    def create(self, key: Array) -> Params:
        """Return fresh weights; call under `jit` with `out_shardings` so that they are born sharded."""
        drawn = nnx.to_pure_dict(nnx.state(self.kind(self.config, nnx.Rngs(params=key), self.adapters)))
        return jax.tree.map(lambda weight, shape: weight.astype(shape.dtype), drawn, self.shapes)

    @property
    def base(self) -> Model:
        """Return the model without adapters, its weights in the dtypes that they are kept in here."""
        shapes = select(self.shapes, lambda path: not is_adapter(path))
        return dataclasses.replace(describe(self.config, self.kind), shapes=shapes)

    def trained(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a tree like the weights' is of trained ones: all, or adapters and a head of one number."""
        return select(tree, self._is_trained)

    def frozen(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a tree like the weights' is of those that stay as they are."""
        return select(tree, lambda path: not self._is_trained(path))

    def layer_weight(
        self, path: tuple[Any, ...], weights: Float[Array, "L ..."], layer: int, turned: bool
    ) -> Array | Turned:
        """Return one layer's of a weight that `path` names below the layers; with `turned`, a large matrix turned."""
        summed = self._summed(path, weights.shape[1:]) if turned else 0
        return turn(weights[layer], summed) if summed > 0 else weights[layer]

    def layer_names(self, turned: bool) -> Mapping[str, Any]:
        """Return the logical names of a layer's own weights."""
        names, shapes = (tree["backbone"]["layers"] for tree in (self.names, self.shapes))

        def own(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct, names: tuple[str | None, ...]):
            summed = self._summed(path, shape.shape[1:]) if turned else 0
            _, *own_names = names
            if summed == 0:
                return tuple(own_names)
            # A dimension that is cut is the first of its part: what is behind it stays whole.
            return Turned((own_names[summed], own_names[0]), shape.shape[1:], summed)

        return jax.tree_util.tree_map_with_path(own, shapes, names)

    def _summed(self, path: tuple[Any, ...], shape: tuple[int, ...]) -> int:
        """Return how many dimensions a product with a layer's weight sums over; 0: it is none that is turned."""
        if self.config.experts > 0 and path[0].key == "mlp":
            return 0
        summed = _SUMMED.get(path[-1].key, 0)
        return summed if math.prod(shape) >= _TURNED_FROM else 0

    def bind_rest(self, rest: Params) -> LanguageModel:
        """Return the module over the weights that are no layer's; whoever runs layers brings their own."""
        backbone = {**rest["backbone"], "layers": self.shapes["backbone"]["layers"]}
        return nnx.merge(self.definition, {**rest, "backbone": backbone})

    def _is_trained(self, path: tuple[str, ...]) -> bool:
        own_head = self.kind is ScalarModel and path[0] == "head"
        return self.adapters is None or own_head or is_adapter(path)

    def bind(self, params: Params) -> LanguageModel | ScalarModel:
        """Return the module over these weights, inside a traced function."""
        return nnx.merge(self.definition, params)


@functools.cache
def describe(
    config: DecoderConfig,
    kind: type[LanguageModel] | type[ScalarModel],
    adapters: Adapters | None = None,
) -> Model:
    """Describe a model from its numbers alone; nothing is allocated."""
    definition, state = nnx.split(nnx.eval_shape(lambda: kind(config, nnx.Rngs(params=0), adapters)))
    shapes = nnx.to_pure_dict(state)
    flat = {path: tuple(v.get_metadata()["out_sharding"]) for path, v in nnx.to_flat_state(state)}
    names = jax.tree_util.tree_map_with_path(lambda path, _: flat[tuple(k.key for k in path)], shapes)
    model = Model(config, kind, definition, shapes, names, adapters)
    if adapters is None:
        return model
    narrow = jax.tree.map(lambda shape: shape.update(dtype=adapters.base_dtype), model.frozen(shapes))
    return dataclasses.replace(model, shapes=join(model.trained(shapes), narrow))
