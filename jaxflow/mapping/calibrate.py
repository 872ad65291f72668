"""Measure this machine's devices and write the profile that plans of them use.

    python -m jaxflow.mapping.calibrate --out=here.json [--devices=4]
    python -m jaxflow.main --config=… --plan --config.cluster.devices.kind=here.json

Small programs, each run on all devices at once, as a step does. Real devices: products, reads, an all-reduce, a
decode layer, attention, the way from the host's memory; links between hosts are not measured, they are taken to be
like those inside. Simulated ones: besides, what small models are made of (`calibrate_simulated`), and sums between
two processes of this machine (`calibrate_collectives`). Knows no config.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxflow.engine import attention
from jaxflow.mapping.calibrate_collectives import between_processes, pairwise
from jaxflow.mapping.calibrate_simulated import with_parts
from jaxflow.mapping.cost import launches
from jaxflow.mapping.devices import DeviceProfile, write_profile
from jaxflow.mapping.measuring import Bench, bench
from jaxflow.models.layers import AttentionRule

_LADDERS = {"cpu": (128, 256, 512, 768), "gpu": (1024, 2048, 4096, 8192)}  # sides of square products
_READ_BYTES = {"cpu": 32 << 20, "gpu": 1 << 30}  # of each device
_REDUCE_BYTES = {"cpu": 8 << 20, "gpu": 256 << 20}
_CHAIN = 32  # products that follow each other, where one alone is too short to time
_LAYER = {"cpu": (16, 256, 1024), "gpu": (64, 4096, 14336)}  # rows, D, F of the decode step
_ATTENTION = {"cpu": (2, 256, 4, 32), "gpu": (8, 2048, 32, 128)}  # B, T, N, H


def matmul_ladder(on: Bench) -> dict[int, float]:
    """Return FLOP/s of one device in square products, by their side."""
    found = {}
    for side in _LADDERS[on.platform]:
        a, b = on.each(side, side), on.each(side, side)
        found[side] = 2.0 * side**3 / on.seconds(lambda a, b: jnp.einsum("dij,djk->dik", a, b), a, b)
    return found


def product_seconds(on: Bench) -> float:
    """Return what a product costs that has next to no arithmetic and no bytes."""
    x, w = on.each(8, 8), on.each(8, 8)

    def chain(x, w):
        def body(x, _):
            return jnp.tanh(jnp.einsum("dij,djk->dik", x, w)), None

        return jax.lax.scan(body, x, None, length=_CHAIN)[0]

    return on.seconds(chain, x, w) / _CHAIN


def read_bandwidth(on: Bench) -> float:
    """Return bytes per second that one device reads: what decoding does with weights and cache."""
    x = on.each(_READ_BYTES[on.platform] // 4, dtype="float32")
    return _READ_BYTES[on.platform] / on.seconds(lambda x: jnp.max(x, axis=1), x)


def collective(on: Bench) -> tuple[float, float]:
    """Return α in seconds and bytes per second of an all-reduce over all devices; of one device, a read's."""
    count = on.mesh.size
    if count == 1:
        return product_seconds(on), read_bandwidth(on)
    whole = NamedSharding(on.mesh, PartitionSpec())

    def total(x):
        return jax.lax.with_sharding_constraint(jnp.sum(x, axis=0), whole)

    small = on.seconds(total, on.each(256, dtype="float32"))
    size = _REDUCE_BYTES[on.platform]
    large = on.seconds(total, on.each(size // 4, dtype="float32"))
    return small, 2.0 * (count - 1) / count * size / max(large - small, 1e-9)


def host_bandwidth(on: Bench) -> float:
    """Return bytes per second from the host's memory to one device."""
    size = _READ_BYTES[on.platform]
    host = np.ones(size // 4, np.float32)
    device, times = on.mesh.devices.flat[0], []
    for _ in range(on.repeats):
        started = time.perf_counter()
        jax.block_until_ready(jax.device_put(host, device, may_alias=False))
        times.append(time.perf_counter() - started)
    return size / min(times)


def decode_layer_seconds(on: Bench) -> float:
    """Return one layer of a decode step without its attention: norm, products, gated MLP, at a small batch."""
    rows, d, f = _LAYER[on.platform]
    weights = [on.each(*shape) for shape in ((d, 3 * d), (3 * d, d), (d, 2 * f), (f, d))]

    def layer(x, qkv, out, up, down):
        def norm(x):
            return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)

        mixed = jnp.einsum("dri,dij->drj", norm(x), qkv)
        x = x + jnp.einsum("drj,djk->drk", mixed, out)
        gate, value = jnp.split(jnp.einsum("dri,dij->drj", norm(x), up), 2, axis=-1)
        return x + jnp.einsum("drj,djk->drk", jax.nn.silu(gate) * value, down)

    return on.seconds(layer, on.each(rows, d), *weights)


def attention_flops(on: Bench) -> float:
    """Return FLOP/s of one device in causal attention of whole sequences, the causal half counted."""
    b, t, n, h = _ATTENTION[on.platform]
    attend = attention.whole_sequence(on.platform)
    rule = AttentionRule(scale=h**-0.5, softcap=0.0, window=0, local=False)
    x = on.each(b, t, n, h)

    def mixed(x):
        flat = x.reshape(-1, t, n, h)
        return attend(flat, flat, flat, rule, None)[0]

    return 4.0 * b * t * n * h * t / 2 / on.seconds(mixed, x)


def device_memory(on: Bench) -> float:
    """Return the bytes that each device can have: its own, or its share of the host's."""
    stats = on.mesh.devices.flat[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024.0 * int(fields["MemTotal"].split()[0]) / on.mesh.size


def measure(on: Bench, kind: str) -> DeviceProfile:
    """Measure a bench's devices and return their profile: shares of 1 where what is reached is what is written."""
    peak = max(matmul_ladder(on).values())
    bandwidth, k = read_bandwidth(on), product_seconds(on)
    alpha, link = collective(on)
    profile = DeviceProfile(
        kind=kind,
        matmul_flops=peak,
        memory_bytes=device_memory(on),
        memory_bandwidth=bandwidth,
        link_bandwidth=link,
        network_bandwidth=link,
        host_bandwidth=host_bandwidth(on),
        link_seconds=alpha,
        network_seconds=alpha,
        product_seconds=k,
        pointwise_seconds=1e-9,
        matmul_efficiency=1.0,
        attention_efficiency=min(1.0, attention_flops(on) / peak),
        bandwidth_efficiency=1.0,
        link_efficiency=1.0,
        network_efficiency=1.0,
    )
    if on.platform == "cpu":
        return _measure_simulated(on, profile)
    rows, d, f = _LAYER[on.platform]
    weights = 6 * d * d + 3 * d * f
    explained = max(2.0 * rows * weights / peak, jnp.dtype(on.dtype).itemsize * weights / bandwidth)
    rest = decode_layer_seconds(on) - explained - launches(profile)
    return dataclasses.replace(profile, pointwise_seconds=max(rest, 1e-9))


def _measure_simulated(on: Bench, profile: DeviceProfile) -> DeviceProfile:
    """Measure the rest of what simulated devices are: their sums, among themselves and between processes, and parts."""
    count = on.mesh.size
    if count % 2 == 0:
        alpha, link = pairwise(on)
        profile = dataclasses.replace(profile, link_seconds=alpha, link_bandwidth=link)
    # At least two devices compute at once there; of fewer here, each would have more of the cores.
    at_work = max(2, count - count % 2)
    alpha, network = between_processes(at_work, on.repeats)
    measured = dataclasses.replace(profile, network_bandwidth=network, simulated=at_work).among(count)
    network = {"network_seconds": alpha, "network_bandwidth": measured.network_bandwidth}
    cores = len(os.sched_getaffinity(0))
    return with_parts(on, dataclasses.replace(profile, **network, cores=cores))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file of the profile, .json")
    parser.add_argument(
        "--devices", type=int, default=1, help="simulated devices, where there is no accelerator"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--cpu_seconds",
        action="store_true",
        help="of a CPU that others use too: count CPU seconds over cores, not the wall's",
    )
    asked = parser.parse_args(arguments)
    if jax.config.jax_platforms in (None, "", "cpu"):
        jax.config.update("jax_num_cpu_devices", asked.devices)
    on = bench(jax.devices(), asked.repeats, asked.cpu_seconds)
    for side, flops in matmul_ladder(on).items():
        print(f"product of {side:>5} × {side:<5} {flops / 1e9:12,.1f} GFLOP/s on each of {on.mesh.size}")
    profile = measure(on, asked.out.stem)
    for name, value in vars(profile).items():
        print(f"{name:<22} {value if isinstance(value, str) else format(value, '.4g')}")
    write_profile(profile, asked.out)
    print(f"written to {asked.out}; a plan uses it with --config.cluster.devices.kind={asked.out}")


if __name__ == "__main__":
    main()
