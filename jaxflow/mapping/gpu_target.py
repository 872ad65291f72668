"""Descriptions of real GPUs for programs to be compiled for, on a machine that has none.

Needs the plugin of JAX's CUDA backend, not NVIDIA's libraries: jax-cuda12-plugin of this JAX's version, without its
extra `with-cuda`. Knows devices by their profile's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
from jax.experimental import topologies

from jaxflow.mapping.devices import DeviceGroup
from jaxflow.types import UserError

# XLA's GpuTargetConfigProto, in text; the figures are those that the driver reports.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_TARGETS: Mapping[str, str] = {"h100": _H100, "h200": _H100}  # one chip, another memory


def gpu_topology(group: DeviceGroup) -> Sequence[jax.Device]:
    """Return the devices of a group as a compiler sees them, hosts one after the other.

    Raises UserError where nothing is known of the kind, or the plugin is missing.
    """
    kind = group.profile.kind
    if kind not in _TARGETS:
        raise UserError(
            f"--compile_for=gpu knows {', '.join(_TARGETS)}, not cluster.devices.kind = {kind!r}; compile for cpu"
        )
    try:
        topology = topologies.get_topology_desc(
            kind,
            "cuda",
            target_config=_TARGETS[kind],
            topology=f"1x{group.hosts}x{group.devices_per_host}",
        )
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(
            "--compile_for=gpu needs the compiler for GPUs, not a GPU:"
            f" pip install jax-cuda12-plugin=={jax.__version__}, 458 MB"
            f" ({str(error).splitlines()[0]})"
        ) from error
    return topology.devices
