"""Where every weight and activation lives: one table, a column for training and one for generation.

Knows logical names and mesh axes; no model, no algorithm. The rule that makes the switch between the columns
cheapest is checked here: for each name, the generation axes are a prefix of the training axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

#            logical name   training               generation
TABLE = {
    "layers": ((), ()),
    "vocabulary": (("tensor", "micro"), ("tensor",)),
    "heads": (("tensor", "micro"), ("tensor",)),
    "kv_heads": (("tensor", "micro"), ("tensor",)),
    "mlp": (("tensor", "micro"), ("tensor",)),
    "embed": (("fsdp",), ()),
    "norm": ((), ()),
    # Activations: the batch takes over the axes that tensor parallelism leaves free.
    "batch": (("data", "fsdp"), ("data", "fsdp", "micro")),
}
_ACTIVATIONS = ("batch",)


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

    @property
    def replicated(self) -> NamedSharding:
        """Return the sharding that puts a whole copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def replicas(self) -> int:
        """Count the shards of the batch dimension."""
        size = 1
        for axis in self.axes["batch"]:
            size *= self.mesh.shape[axis]
        return size


def training_layout(mesh: Mesh) -> Layout:
    """Return the training column on this mesh."""
    return Layout(mesh, {name: columns[0] for name, columns in TABLE.items()})


def generation_layout(mesh: Mesh) -> Layout:
    """Return the generation column on this mesh; ValueError if the table breaks the prefix rule."""
    broken = broken_prefixes(TABLE)
    if broken:
        raise ValueError(f"generation axes are not a prefix of the training axes: {', '.join(broken)}")
    return Layout(mesh, {name: columns[1] for name, columns in TABLE.items()})


def broken_prefixes(table: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> list[str]:
    """Return the weight names whose generation axes are not a prefix of their training axes.

    With the prefix rule every device's generation shard contains its training shard, so a switch receives
    M/t_g − M/(t·fsdp) bytes per device, the minimum, and nothing is held twice (HybridFlow Table 2).
    """
    return [
        name
        for name, (training, generation) in table.items()
        if name not in _ACTIVATIONS and training[: len(generation)] != generation
    ]
