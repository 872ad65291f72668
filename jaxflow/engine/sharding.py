"""Where every weight and activation lives: one table, a column for training and one for generation.

Knows logical names, mesh axes and the sizes of a model; no weights, no algorithm. The rule that makes the switch
between the columns cheapest is checked here: for each name, the generation axes are a prefix of the training axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxflow.models.decoder_config import DecoderConfig

#            logical name   training               generation
TABLE = {
    "layers": (("pipe", "micro_pipe"), ("pipe",)),
    # Cut over the stages too: else the table and the head would lie whole on each, and one stage would compute both.
    "vocabulary": (("tensor", "pipe", "micro_pipe", "micro"), ("tensor", "pipe")),
    "heads": (("tensor", "micro"), ("tensor",)),
    "kv_heads": (("tensor", "micro"), ("tensor",)),
    "mlp": (("tensor", "micro"), ("tensor",)),
    "experts": (("expert",), ("expert",)),
    "embed": (("fsdp",), ()),
    "norm": ((), ()),
    # Activations: the batch takes over the axes that the weights leave free.
    "batch": (("data", "fsdp", "expert"), ("data", "fsdp", "expert", "micro_pipe", "micro")),
    # Rows of a cache: of the batch's, each stage has as many of one layer as it has layers (engine/cache.py).
    "cached": ((), ("pipe", "data", "fsdp", "expert", "micro_pipe", "micro")),
}
_ACTIVATIONS = ("batch", "cached")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One column of the table on one mesh."""

    mesh: Mesh
    axes: Mapping[str, tuple[str, ...]]  # logical name -> mesh axes, major first

    def spec(self, names: Sequence[str | None]) -> PartitionSpec:
        """Return the PartitionSpec of an array whose dimensions bear these logical names."""
        return PartitionSpec(*(self.axes[name] or None if name is not None else None for name in names))

    def sharding(self, names: Sequence[str | None]) -> NamedSharding:
        """Return where an array with these logical names lives."""
        return NamedSharding(self.mesh, self.spec(names))

    def weights(self, names: Mapping[str, Any]) -> Any:
        """Return the shardings of a whole tree of logical names."""
        return jax.tree.map(self.sharding, names, is_leaf=lambda leaf: isinstance(leaf, tuple))

    def constrain(self, activation: Array, names: Sequence[str | None]) -> Array:
        """Bind the layout of an activation inside a compiled program."""
        return jax.lax.with_sharding_constraint(activation, self.sharding(names))

    def fitting(self, sizes: Mapping[str, int]) -> Layout:
        """Return this layout with each of these dimensions cut no further than its size divides.

        What stays of the axes is the longest prefix whose product divides the size, so the prefix rule survives;
        over the other axes the dimension is replicated. Made for fewer key/value heads than tensor ranks, whose
        weights are small: {"kv_heads": K}.
        """
        fitted = dict(self.axes)
        for name, size in sizes.items():
            fitted[name] = fitting_prefix(size, fitted[name], self.mesh.shape)
        return dataclasses.replace(self, axes=fitted)

    def _ways(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def replicated(self) -> NamedSharding:
        """Return the sharding that puts a whole copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def replicas(self) -> int:
        """Count the shards of the batch dimension."""
        return self._ways(self.axes["batch"])

    @property
    def stages(self) -> int:
        """Count the pipeline stages that the layers are cut into."""
        return self._ways(self.axes["layers"])


def fitting_prefix(size: int, axes: tuple[str, ...], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the longest prefix of mesh axes whose product divides a size."""
    while size % math.prod(sizes[axis] for axis in axes) != 0:
        axes = axes[:-1]
    return axes


def training_layout(mesh: Mesh, model: DecoderConfig | None = None) -> Layout:
    """Return the training column on this mesh, fitted to a model; None: for rows alone, whatever the model."""
    return _fitted(Layout(mesh, {name: columns[0] for name, columns in TABLE.items()}), model)


def generation_layout(mesh: Mesh, model: DecoderConfig | None = None) -> Layout:
    """Return the generation column on this mesh, fitted as training's; ValueError if the prefix rule is broken."""
    broken = broken_prefixes(TABLE)
    if broken:
        raise ValueError(f"generation axes are not a prefix of the training axes: {', '.join(broken)}")
    return _fitted(Layout(mesh, {name: columns[1] for name, columns in TABLE.items()}), model)


def _fitted(layout: Layout, model: DecoderConfig | None) -> Layout:
    """Cut key/value heads as far as they go; whatever else does not divide is refused (layout_rules.py)."""
    return layout if model is None else layout.fitting({"kv_heads": model.kv_heads})


def broken_prefixes(table: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> list[str]:
    """Return the weight names whose generation axes are not a prefix of their training axes.

    With the prefix rule every device's generation shard contains its training shard, so a switch receives
    M/(t_g·p_g) − M/(t·p·fsdp) bytes per device, the minimum, and nothing is held twice (HybridFlow Table 2).
    """
    return [
        name
        for name, (training, generation) in table.items()
        if name not in _ACTIVATIONS and training[: len(generation)] != generation
    ]
