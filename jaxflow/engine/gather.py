"""The prefix rule as a program: gather each dimension over the axes that generation lets go.

Knows shardings on one mesh. XLA would find the same collectives by itself, but gathers along a minor dimension with
whole transposes around it: two to three times the seconds on CPU.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array


def dropped_axes(source: Sharding, target: Sharding, rank: int) -> tuple[tuple[str, ...], ...] | None:
    """Return, per dimension, the mesh axes that cut it in the source alone; None unless target axes are a prefix."""
    if not (isinstance(source, NamedSharding) and isinstance(target, NamedSharding)):
        return None
    before, after = _axes(source.spec, rank), _axes(target.spec, rank)
    nested = all(one[: len(other)] == other for one, other in zip(before, after, strict=True))
    if source.mesh != target.mesh or not nested:
        return None
    return tuple(one[len(other) :] for one, other in zip(before, after, strict=True))


def _axes(spec: PartitionSpec, rank: int) -> list[tuple[str, ...]]:
    entries = [*spec, *(None,) * (rank - len(spec))]
    return [
        () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in entries
    ]


def gather(
    array: Array, source: NamedSharding, target: NamedSharding, dropped: tuple[tuple[str, ...], ...]
) -> Array:
    """Bring an array to `target` inside a compiled program: one all-gather for each dimension that drops axes."""
    parts = functools.partial(_gather_parts, dropped=dropped)
    # What all-gather makes is the same on all devices of a group, which its type cannot say.
    mapped = jax.shard_map(
        parts, mesh=source.mesh, in_specs=source.spec, out_specs=target.spec, check_vma=False
    )
    return mapped(array)


def _gather_parts(part: Array, dropped: tuple[tuple[str, ...], ...]) -> Array:
    for dimension, axes in enumerate(dropped):
        if axes:
            # Gathered on a leading dimension, parts arrive whole; one copy then puts their rows side by side.
            parts = jnp.moveaxis(jax.lax.all_gather(part, axes), 0, dimension)
            sizes = parts.shape
            joined = math.prod(sizes[dimension : dimension + 2])
            part = parts.reshape(*sizes[:dimension], joined, *sizes[dimension + 2 :])
    return part
