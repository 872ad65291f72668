"""How many lanes of generation run side by side on one device. Knows no row and no program.

On a CPU XLA runs the operations of a program one after the other and cuts one over the cores if it is large. A decode
step is made of many that are not. So a call's rows are cut into lanes, each with its own slots and its own course:
while one lane's operations keep a core busy, another's keep the next, and no core waits for the host.
"""

from __future__ import annotations

import os

import jax

from jaxflow.engine.sharding import Layout
from jaxflow.models.decoder_config import DecoderConfig

# Every lane reads the weights for itself. That pays from so many rows on, and from fewer where the matrices of a
# layer, of so many numbers each, stay in a core's cache.
_ROWS, _ROWS_BY_CACHED_WEIGHTS = 32, 8
_CACHED = 1 << 18


def lanes_of(config: DecoderConfig, layout: Layout, rows: int) -> int:
    """Return how many lanes so many rows at a time are worth: 1 but for a CPU that is one device.

    Devices that share a CPU have its cores busy already, and an accelerator runs one program at a time.
    """
    device = layout.mesh.devices.flat[0]
    if device.platform != "cpu" or jax.local_device_count() > 1 or layout.mesh.size > 1:
        return 1
    widest = max(config.mlp_width * max(config.experts, 1), config.padded_heads * config.head_width)
    fewest = _ROWS_BY_CACHED_WEIGHTS if config.width * widest < _CACHED else _ROWS
    return max(1, min(os.cpu_count() or 1, rows // fewest))
