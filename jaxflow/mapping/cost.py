"""The terms of the cost model: each a formula of sizes and of one device's figures, in seconds or bytes.

Knows no role, no algorithm and no search. A device's figures come in as `DeviceProfile`. Letters: m tokens, t tensor
ways, D width, L layers; η stands for the profile's efficiencies. docs/planning.md says where each term errs.
"""

from __future__ import annotations

import dataclasses
import math

from jaxflow.mapping.devices import DeviceProfile
from jaxflow.mapping.model_size import ModelSize

# Of the same published profiles as devices.py's (8B model, A100, 2,048 tokens: 320 µs per layer): numbers of a layer's
# activations that pass between memory and the chip for each token, beside products and attention: norms, residuals
# and rotation go over D, activation and gate over F.
PASSES_OVER_WIDTH = 10
PASSES_OVER_MLP = 6
_PRODUCTS_PER_LAYER = 4  # query-key-value, output, gate-up, down
# Numbers of D that pass for each row of an expert, beside its products: sorted, put back, masked, mixed
# (models/experts.py).
_PASSES_OVER_ROWS = 8
_LOGIT_PASSES = 3  # over float32 logits: write, normalise, choose
# AdamW with a global-norm clip, in float32: reads gradient twice, master and two moments; writes master and moments.
OPTIMIZER_TRAFFIC_BYTES = 32
# Computing beside a collective slows both down (Galvatron, arXiv 2211.13878, measured 1.126).
OVERLAP_SLOWDOWN = 1.126


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Time by what takes it; a call's whole time is the sum."""

    compute: float = 0.0  # arithmetic of products and attention
    memory: float = 0.0  # reading and writing the device's memory
    links: float = 0.0  # collectives and moves between devices
    latency: float = 0.0  # launches and the α of collectives
    idle: float = 0.0  # waiting for other pipeline stages
    host: float = 0.0  # controller, scheduler, host memory

    @property
    def total(self) -> float:
        """Return the sum."""
        return self.compute + self.memory + self.links + self.latency + self.idle + self.host

    @property
    def bound(self) -> str:
        """Name the largest part."""
        parts = vars(self)
        return max(parts, key=lambda name: parts[name])

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.compute + other.compute,
            self.memory + other.memory,
            self.links + other.links,
            self.latency + other.latency,
            self.idle + other.idle,
            self.host + other.host,
        )

    def times(self, factor: float) -> Seconds:
        """Return every part multiplied."""
        return Seconds(*(factor * part for part in vars(self).values()))


@dataclasses.dataclass(frozen=True)
class Span:
    """The devices of one collective: how many, and on how many hosts."""

    size: int
    hosts: int

    @property
    def inside(self) -> bool:
        """Return whether it stays in one host."""
        return self.hosts == 1


ALONE = Span(1, 1)
"""The span of a collective that there is none of."""


def span(size: int, stride: int, devices_per_host: int) -> Span:
    """Return where `size` devices lie that are `stride` apart, hosts holding `devices_per_host` neighbours each."""
    on_a_host = min(size, max(1, devices_per_host // stride))
    return Span(size, -(-size // on_a_host))


def forward_flops(model: ModelSize, tokens: float, context: float) -> float:
    """Return FLOPs of one forward pass: m (2 N_ne + 4 L N H c), c the mean number of positions attended to."""
    return product_flops(model, tokens) + attention_flops(model, tokens, context)


def product_flops(model: ModelSize, tokens: float) -> float:
    """Return 2 m N_ne."""
    return 2.0 * tokens * model.products


def attention_flops(model: ModelSize, tokens: float, context: float) -> float:
    """Return 4 m L N H c: scores and mixing, a multiplication and an addition each."""
    decoder = model.decoder
    return 4.0 * tokens * decoder.layers * decoder.padded_heads * decoder.head_width * context


def all_gather(size: float, where: Span, device: DeviceProfile) -> Seconds:
    """Return the time in which each device gets the (n−1)/n of `size` bytes that it lacks: α + (n−1)/n · S / B.

    Between hosts, each device has its own share of the host's network, and the devices of a host in the group
    relay to each other inside: of S, a host receives (h−1)/h, over the shares of its members.
    """
    if where.size == 1 or size == 0.0:
        return Seconds()
    inside = (where.size - 1) / where.size * size / (device.link_bandwidth * device.link_efficiency)
    if where.inside:
        return Seconds(links=inside, latency=device.link_seconds)
    members = where.size / where.hosts
    arriving = (where.hosts - 1) / where.hosts * size
    between = arriving / (members * device.network_bandwidth * device.network_efficiency)
    return Seconds(links=max(inside, between), latency=device.network_seconds)


def all_reduce(size: float, where: Span, device: DeviceProfile) -> Seconds:
    """Return the time to sum `size` bytes over a group: a reduce-scatter and an all-gather, one launch."""
    once = all_gather(size, where, device)
    return Seconds(links=2.0 * once.links, latency=once.latency)


def whole_pass(
    model: ModelSize,
    tokens: float,
    context: float,
    number_bytes: int,
    tensor: int,
    where: Span,
    device: DeviceProfile,
    experts: Span = ALONE,
) -> Seconds:
    """Return one forward pass of `tokens` tokens through all layers on `tensor` devices, the head left out.

    Products at η of the peak (or reading their weights, whichever is longer), attention at its own η, pointwise
    traffic, k per product, and two all-reduces of m·D per layer. Ranks that cut experts gather each other's tokens
    and scatter the results back; each has its share of the arithmetic where the routing is even.
    """
    decoder, layers = model.decoder, model.layers
    width, share = decoder.width, tokens / tensor
    arithmetic = (
        2.0 * share * layers * model.layer_products / (device.matmul_flops * device.matmul_efficiency)
    )
    memory_speed = device.memory_bandwidth * device.bandwidth_efficiency
    reading = number_bytes * layers * model.layer_share(tensor, experts.size) / memory_speed
    attention = attention_flops(model, share, context) / (device.matmul_flops * device.attention_efficiency)
    numbers = tokens * PASSES_OVER_WIDTH * width
    if decoder.experts == 0:
        numbers += share * PASSES_OVER_MLP * decoder.mlp_width
    else:
        rows = decoder.experts_per_token * experts.size
        numbers += share * decoder.experts_per_token * PASSES_OVER_MLP * decoder.mlp_width
        numbers += tokens * rows * _PASSES_OVER_ROWS * width
    pointwise = number_bytes * layers * numbers / memory_speed
    reduced = all_reduce(number_bytes * tokens * width, where, device).times(2.0 * layers)
    reduced += expert_exchange(model, tokens, number_bytes, experts, device)
    return Seconds(
        compute=arithmetic + attention,
        memory=max(0.0, reading - arithmetic) + pointwise,
        links=reduced.links,
        latency=reduced.latency + layers * launches(device),
    )


def expert_exchange(
    model: ModelSize, tokens: float, number_bytes: int, experts: Span, device: DeviceProfile
) -> Seconds:
    """Return what ranks that cut experts pass to each other in a forward pass: per layer all of their tokens' D
    gathered and their results scattered back, the same bytes (engine/experts.py)."""
    size = number_bytes * experts.size * tokens * model.decoder.width
    return all_gather(size, experts, device).times(2.0 * model.layers)


def launches(device: DeviceProfile) -> float:
    """Return what a layer costs beyond arithmetic and bytes: 4 k + the small pointwise kernels."""
    return _PRODUCTS_PER_LAYER * device.product_seconds + device.pointwise_seconds


def head_pass(model: ModelSize, tokens: float, ways: int, device: DeviceProfile) -> Seconds:
    """Return the product with the head for `tokens` tokens, and three passes over its float32 logits."""
    share = tokens / ways
    logits = 4.0 * _LOGIT_PASSES * share * model.head_products / model.decoder.width
    return Seconds(
        compute=2.0 * share * model.head_products / (device.matmul_flops * device.matmul_efficiency),
        memory=logits / (device.memory_bandwidth * device.bandwidth_efficiency),
    )


def pipelined(stage: Seconds, microbatches: int, pipe: int) -> Seconds:
    """Return (M + p − 1) times a stage's time: M at work and the bubble of p − 1, which is idle time."""
    return stage.times(microbatches) + Seconds(idle=(pipe - 1) * stage.total)


def overlapped(work: Seconds, moving: Seconds) -> Seconds:
    """Return a pass whose collectives run beside its work: the longer of the two, slowed by their company."""
    if moving.links == 0.0:
        return work + moving
    longer = max(work.total, moving.links) * OVERLAP_SLOWDOWN
    return work + Seconds(links=max(0.0, longer - work.total), latency=moving.latency)


def optimizer_update(parameters: float, device: DeviceProfile) -> Seconds:
    """Return AdamW over this device's parameters: 32 bytes each over the memory's bandwidth."""
    traffic = OPTIMIZER_TRAFFIC_BYTES * parameters
    return Seconds(memory=traffic / (device.memory_bandwidth * device.bandwidth_efficiency))


def decode_step(
    model: ModelSize,
    rows: float,
    context: float,
    number_bytes: int,
    tensor: int,
    pipe: int,
    where: Span,
    device: DeviceProfile,
    experts: Span = ALONE,
) -> Seconds:
    """Return one step of `rows` running sequences, `context` cached positions each.

    max(weights / (g W η), 2 c N_ne / (g C η)) + cache / (g W η) + L (4 k + pointwise + 2 all-reduces) + head. With a
    pipeline the rows go through it in p_g groups, each of which reads every stage's weights: p_g · (weights / g); a
    stage has L / p_g layers, so a token still takes L of them, each for a p_g-th of the rows. What stages hand to each
    other is `stage_hops`. Of experts those are read that a token goes to: 1 − (1 − k/E)^tokens of them where the
    routing is even.
    """
    memory_speed = device.memory_bandwidth * device.bandwidth_efficiency
    group = rows / pipe
    read = number_bytes * _read_weights(model, group * experts.size, tensor, experts.size) / memory_speed
    arithmetic = forward_flops(model, rows, context) / (tensor * pipe)
    arithmetic /= device.matmul_flops * device.matmul_efficiency
    cache = rows * context * cache_bytes(model, number_bytes, tensor, pipe) / memory_speed
    vocabulary = model.head_products / model.decoder.width
    sampling = 4.0 * _LOGIT_PASSES * rows * vocabulary / (tensor * pipe) / memory_speed
    reduced = all_reduce(number_bytes * group * model.decoder.width, where, device).times(2.0 * model.layers)
    reduced += expert_exchange(model, group, number_bytes, experts, device)
    return Seconds(
        compute=max(0.0, arithmetic - read),
        memory=read + cache + sampling,
        links=reduced.links,
        latency=reduced.latency + model.layers * launches(device),
    )


def stage_hops(numbers: float, number_bytes: int, stages: Span, device: DeviceProfile) -> Seconds:
    """Return what generation's stages pass to each other in one tick, `numbers` of a group's hidden states: to the next
    stage, each tensor rank its own copy, and from the last one to all, for each draws from a part of the vocabulary."""
    if stages.size == 1:
        return Seconds()
    size = number_bytes * numbers
    if stages.inside:
        speed, alpha = device.link_bandwidth * device.link_efficiency, device.link_seconds
    else:
        speed, alpha = device.network_bandwidth * device.network_efficiency, device.network_seconds
    return Seconds(links=size / speed, latency=alpha) + all_reduce(size, stages, device)


def _read_weights(model: ModelSize, tokens: float, tensor: int, expert: int) -> float:
    """Return the weights that a device reads in a decode step of so many tokens."""
    in_experts = model.layers * model.layer_experts
    if in_experts == 0:
        return model.rollout_read / tensor
    decoder = model.decoder
    used = 1.0 - (1.0 - decoder.experts_per_token / decoder.experts) ** tokens
    return (model.rollout_read - in_experts) / tensor + used * in_experts / (tensor * expert)


def cache_bytes(model: ModelSize, number_bytes: int, tensor: int, pipe: int) -> float:
    """Return the bytes of one position of one sequence on each device; K heads cut over t_g at most K ways."""
    return number_bytes * model.cached_numbers / (min(tensor, model.decoder.kv_heads) * pipe)


def rounds_of(rows: int, most: int) -> int:
    """Return in how many rounds of at most `most` rows each the rows of a replica are generated."""
    return math.ceil(rows / most)


def transition_bytes(weights: float, training_ways: float, generation_ways: int) -> float:
    """Return what a device receives at a switch: M / (t_g p_g) − M / (t p f), HybridFlow Table 2."""
    return weights / generation_ways - weights / training_ways


def transition(
    weights: float,
    training_ways: float,
    generation_ways: int,
    devices_per_host: int,
    device: DeviceProfile,
    needed: float = 1.0,
) -> Seconds:
    """Return the time of a switch: bytes over the links of a host, or what the host lacks over its network.

    The replicas' ranks are neighbours, so a host already holds the shards of min(devices, t p f) of them; none where
    `training_ways` is infinite: the weights are other devices'. `needed` is the share of the weights that a host's
    devices generate with: less than all where it has not every stage.
    """
    received = transition_bytes(weights, training_ways, generation_ways)
    if received <= 0.0:
        copied = 2.0 * weights / generation_ways
        return Seconds(memory=copied / (device.memory_bandwidth * device.bandwidth_efficiency))
    held = min(1.0, devices_per_host / training_ways)
    inside = received / (device.link_bandwidth * device.link_efficiency)
    on_host = devices_per_host * device.network_bandwidth * device.network_efficiency
    between = max(0.0, needed - held) * weights / on_host
    alpha = device.link_seconds if between == 0.0 else device.network_seconds
    return Seconds(links=max(inside, between), latency=alpha)


def host_move(size: float, device: DeviceProfile) -> Seconds:
    """Return the time of moving bytes between a device and its host's memory."""
    return Seconds(host=size / device.host_bandwidth)
