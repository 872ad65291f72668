"""The one place that builds meshes. Knows devices and axis names, nothing of weights.

A pool has one mesh with nested axes. Each parallel size of training is a pair of axes: p = 'pipe' × 'micro_pipe',
t = 'tensor' × 'micro'; generation keeps the first of each pair, p_g and t_g, and hands the second to the batch.
In each pair the micro axis is the minor one, so generation takes every (p/p_g)-th and (t/t_g)-th rank and the
ranks that trade weights at the switch are neighbours (HybridFlow §5.3: zero redundancy is this order;
docs/hybrid_engine.md). 'expert' cuts a mixture's experts, in both alike, over replicas that see different rows.
Tensor ranks are the innermost of all: they talk in every layer, and belong in one machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "expert", "pipe", "micro_pipe", "tensor", "micro")


def make_mesh(
    data: int,
    fsdp: int,
    tensor: int,
    generation_tensor: int,
    devices: Sequence[jax.Device],
    pipe: int = 1,
    generation_pipe: int = 1,
    expert: int = 1,
) -> Mesh:
    """Arrange devices as data × fsdp × expert × p_g × (p / p_g) × t_g × (t / t_g), in the order given.

    Raises ValueError if the sizes do not multiply to the number of devices, t_g does not divide t or p_g not p.
    """
    for name, whole, part in (("tensor", tensor, generation_tensor), ("pipe", pipe, generation_pipe)):
        if whole % part != 0:
            raise ValueError(f"generation {name} size {part} does not divide the training size {whole}")
    shape = (
        data,
        fsdp,
        expert,
        generation_pipe,
        pipe // generation_pipe,
        generation_tensor,
        tensor // generation_tensor,
    )
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, shape, strict=True))} needs {np.prod(shape)} devices, got {len(devices)}"
        )
    grid = np.asarray(devices, dtype=object).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
