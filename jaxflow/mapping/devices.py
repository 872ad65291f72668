"""What devices can do, by name: peaks, memory, links, and the shares of them that programs reach.

Knows no model and no layout. Bandwidths are bytes per second in one direction; sizes are decimal. Peaks are dense.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from jaxflow.types import UserError


@dataclasses.dataclass(frozen=True)
class DeviceProfile:
    """One kind of device with its links, as data sheets, published profiles or `mapping.calibrate` give them."""

    kind: str
    matmul_flops: float  # FLOP/s at peak, in bfloat16 (float32 on cpu)
    memory_bytes: float  # of the device's own memory that a program can have
    memory_bandwidth: float  # B/s
    link_bandwidth: float  # B/s, to the other devices of its host
    network_bandwidth: float  # B/s, its share of what its host has to other hosts
    host_bandwidth: float  # B/s, to its host's memory
    link_seconds: float  # α: a small collective inside one host
    network_seconds: float  # α: a small collective between hosts
    product_seconds: float  # k: what a product costs beyond its arithmetic and its bytes
    pointwise_seconds: float  # of one layer's norms, rotations and activations at small batches
    matmul_efficiency: float = 0.72  # of the peak, large products
    attention_efficiency: float = 0.55  # of the peak, whole-sequence attention
    bandwidth_efficiency: float = 0.87  # of the memory's peak, reading weights
    link_efficiency: float = 0.8  # of the link's peak, large collectives
    network_efficiency: float = 0.85  # of the network's peak, large collectives
    pointwise_efficiency: float = 0.87  # of the memory's peak: norms, rotations, gates of a forward pass
    gradient_efficiency: float = 0.87  # the same of a backward pass, its transposes among them
    softmax_efficiency: float = 0.87  # of the memory's peak: passes over scores that attention writes out
    logits_efficiency: float = 0.87  # of the memory's peak: passes over logits
    sampling_efficiency: float = 0.87  # the same where a token is drawn from them
    dispatch_seconds: float = 0.0  # of starting a program; 0: the host runs ahead of its device
    generation_seconds: float = 0.0  # of the host, for each call that generates
    generation_row_seconds: float = 0.0  # of the host, for each row that a process generates
    # Devices that one machine's cores pretended to be when this was measured, all at work at once: they share what
    # the cores do, products wait for their operands, attention writes its scores out, and what several processes
    # exchange all goes through sockets. 0: real devices, each with its own.
    simulated: float = 0
    cores: int = 1  # of that machine

    def among(self, devices: float) -> DeviceProfile:
        """Return what each of `devices` reaches when these, and no others, are at work.

        Real devices: what they always reach. Simulated ones share their machine's cores: rates n/k of those that n
        of them reached, seconds k/n. What waits for a turn on a core, α between processes, stays as it is.
        """
        if self.simulated in (0, devices):
            return self
        factor = devices / self.simulated
        rates = {name: vars(self)[name] / factor for name in _SHARED_RATES}
        return dataclasses.replace(
            self, simulated=devices, **rates, **{name: vars(self)[name] * factor for name in _SHARED_SECONDS}
        )

    def beside(self, other: DeviceProfile) -> DeviceProfile:
        """Return this kind as it is seen by another: what passes between them takes the slower network."""
        if (
            self.network_bandwidth * self.network_efficiency
            < other.network_bandwidth * other.network_efficiency
        ):
            slower = self
        else:
            slower = other
        return dataclasses.replace(
            self,
            network_bandwidth=slower.network_bandwidth,
            network_efficiency=slower.network_efficiency,
            network_seconds=max(self.network_seconds, other.network_seconds),
        )


_SHARED_RATES = ("matmul_flops", "memory_bandwidth", "link_bandwidth", "network_bandwidth")
_SHARED_SECONDS = (
    "link_seconds",
    "product_seconds",
    "pointwise_seconds",
    "dispatch_seconds",
)

# Data sheets: NVIDIA's and Google Cloud's. Memory: the sheet's decimal figure; a card sold with 80 GB reports 85.0e9
# bytes, and contexts, buffers of collectives and fragmentation take the rest.
# α of links: medians of all-reduces of 2 to 64 kB in NCCL, 8 cards of a host (profiles published with Vidur,
# arXiv 2405.05465): 35 µs on H100, 40 on A100. α of networks: XLA's own latency model (45 µs launch + 31 µs round
# trip). product_seconds and pointwise_seconds: the same profiles; one formula, weight bytes / (0.87 W) + k per product,
# explains them with k = 3.5 µs on H100 and 6 µs on A100, and 0.70 to 0.76 of the peak is their ceiling.
# attention: FlashAttention-2 (arXiv 2307.08691), A100, causal, forward and backward together.
# link_efficiency: 365 GB/s of bus bandwidth of H100's 450, 174 of A100's 300 (64 MB, same profiles).
_A100 = DeviceProfile(
    kind="a100-80",
    matmul_flops=312e12,
    memory_bytes=80e9,
    memory_bandwidth=2039e9,
    link_bandwidth=300e9,
    network_bandwidth=25e9,
    host_bandwidth=25e9,
    link_seconds=40e-6,
    network_seconds=76e-6,
    product_seconds=6e-6,
    pointwise_seconds=15e-6,
    link_efficiency=0.58,
)
_H100 = dataclasses.replace(
    _A100,
    kind="h100",
    matmul_flops=989e12,
    memory_bandwidth=3350e9,
    link_bandwidth=450e9,
    network_bandwidth=50e9,
    host_bandwidth=50e9,
    link_seconds=35e-6,
    product_seconds=3.5e-6,
    pointwise_seconds=11e-6,
    link_efficiency=0.81,
)
_L40S = dataclasses.replace(
    _H100,
    kind="l40s",
    matmul_flops=362e12,
    memory_bytes=48e9,
    memory_bandwidth=864e9,
    link_bandwidth=32e9,
    network_bandwidth=12.5e9,
    host_bandwidth=25e9,
    link_efficiency=0.7,
)
_V5E = DeviceProfile(
    kind="tpu-v5e",
    matmul_flops=197e12,
    memory_bytes=16e9,
    memory_bandwidth=819e9,
    link_bandwidth=90e9,  # two of a torus's axes, one way each (jax-ml.github.io/scaling-book: 45 GB/s per link)
    network_bandwidth=45e9,  # a slice's hosts are neighbours on the torus
    host_bandwidth=16e9,
    link_seconds=5e-6,
    network_seconds=10e-6,
    product_seconds=1e-6,
    pointwise_seconds=2e-6,
    network_efficiency=0.9,
    link_efficiency=0.9,
)
DEVICES: Mapping[str, DeviceProfile] = {
    profile.kind: profile
    for profile in (
        dataclasses.replace(_A100, kind="a100-40", memory_bytes=40e9, memory_bandwidth=1555e9),
        _A100,
        _H100,
        # 790 TFLOP/s and 4.3 TB/s were measured on one card: the shares below the sheet's figures.
        dataclasses.replace(
            _H100,
            kind="h200",
            memory_bytes=141e9,
            memory_bandwidth=4800e9,
            bandwidth_efficiency=0.87,
        ),
        dataclasses.replace(
            _H100,
            kind="b200",
            matmul_flops=2250e12,
            memory_bytes=180e9,
            memory_bandwidth=7700e9,
            link_bandwidth=900e9,
        ),
        _L40S,
        # 165 TFLOP/s with float32 sums; cards of a host meet over PCIe 4 without peer access.
        dataclasses.replace(
            _L40S,
            kind="rtx-4090",
            matmul_flops=165e12,
            memory_bytes=24e9,
            memory_bandwidth=1008e9,
            network_bandwidth=3e9,
            link_efficiency=0.4,
        ),
        _V5E,
        dataclasses.replace(
            _V5E,
            kind="tpu-v5p",
            matmul_flops=459e12,
            memory_bytes=95e9,
            memory_bandwidth=2765e9,
            link_bandwidth=270e9,
            network_bandwidth=90e9,
        ),
        dataclasses.replace(
            _V5E,
            kind="tpu-v6e",
            matmul_flops=918e12,
            memory_bytes=32e9,
            memory_bandwidth=1638e9,
            link_bandwidth=180e9,
            network_bandwidth=90e9,
        ),
        # One of four simulated devices that share two server cores, until `mapping.calibrate` has measured these.
        DeviceProfile(
            kind="cpu",
            matmul_flops=25e9,
            memory_bytes=4e9,
            memory_bandwidth=5e9,
            link_bandwidth=1e9,
            network_bandwidth=0.5e9,
            host_bandwidth=5e9,
            link_seconds=100e-6,
            network_seconds=500e-6,
            product_seconds=10e-6,
            pointwise_seconds=100e-6,
            link_efficiency=1.0,
            network_efficiency=1.0,
            bandwidth_efficiency=1.0,
            simulated=4,
            cores=2,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class DeviceGroup:
    """Hosts of one kind: a cluster is one such group, or several where its devices differ."""

    profile: DeviceProfile
    hosts: int
    devices_per_host: int

    @property
    def devices(self) -> int:
        """Count the devices of all hosts."""
        return self.hosts * self.devices_per_host


def device_profile(kind: str) -> DeviceProfile:
    """Return a profile by its name in the table, or read it from the JSON file that `kind` is the path of.

    Raises UserError where it is neither.
    """
    if kind in DEVICES:
        return DEVICES[kind]
    if kind.endswith(".json"):
        return read_profile(Path(kind))
    raise UserError(
        f"device kind {kind!r}: it is one of {', '.join(DEVICES)}, or the path of a .json profile that"
        " python -m jaxflow.mapping.calibrate wrote"
    )


def write_profile(profile: DeviceProfile, path: Path) -> None:
    """Write a profile as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(profile), indent=2) + "\n")


def read_profile(path: Path) -> DeviceProfile:
    """Read what `write_profile` wrote; UserError where the file is missing or something else."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a device profile: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(DeviceProfile)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if not isinstance(values, dict) or not required <= values.keys() <= fields.keys():
        raise UserError(f"{path}: not a device profile: it needs the keys {', '.join(sorted(required))}")
    least = {name: 0 if field.default == 0 else 1e-300 for name, field in fields.items()}
    wrong = [
        name
        for name, value in values.items()
        if name != "kind"
        and (isinstance(value, bool) or not isinstance(value, int | float) or value < least[name])
    ]
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)} must be numbers above 0")
    return DeviceProfile(**values)
