"""The one place that builds meshes. Knows devices and axis names, nothing of weights.

A pool has one mesh with nested axes. Training tensor parallelism spans ('tensor', 'micro'), generation 'tensor'
alone; 'micro' is the minor axis, so the devices that trade weights at the switch are neighbours and each one's
generation shard contains its training shard (HybridFlow §5.3: zero redundancy is this axis order).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor", "micro")


def make_mesh(
    data: int, fsdp: int, tensor: int, generation_tensor: int, devices: Sequence[jax.Device]
) -> Mesh:
    """Arrange devices as data × fsdp × t_g × (t / t_g), in the order given.

    Raises ValueError if the sizes do not multiply to the number of devices or t_g does not divide t.
    """
    if tensor % generation_tensor != 0:
        raise ValueError(
            f"generation tensor size {generation_tensor} does not divide the training size {tensor}"
        )
    shape = (data, fsdp, generation_tensor, tensor // generation_tensor)
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, shape, strict=True))} needs {np.prod(shape)} devices, got {len(devices)}"
        )
    grid = np.asarray(devices, dtype=object).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
