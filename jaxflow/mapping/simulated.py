"""Seconds of passes on devices that the cores of one machine simulate: what a small model on a CPU is made of.

The terms of `cost` are of accelerators, where arithmetic, memory or links hide all else. Here nothing hides: products
wait for their operands, attention writes its scores out, pointwise work is a third of a layer, a backward pass turns
arrays over, and the host starts every program. Each function is one such term, of sizes and of figures that
`calibrate` measures. Letters as in `cost`; T positions of a sequence, N heads, H their width, C and W what one device
reaches in products and in moving bytes. Knows no role.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from jaxflow.mapping import cost
from jaxflow.mapping.cost import Seconds, Span
from jaxflow.mapping.devices import DeviceProfile
from jaxflow.mapping.model_size import ModelSize

FORWARD_OPERATIONS = 36
BACKWARD_OPERATIONS = 87
"""Operations of one layer in the scans of this engine's programs, counted in what XLA compiles for the CPU."""

_SCORE_PASSES = 3
_LOGIT_PASSES = 6
_NUMBER = 4  # bytes: the CPU computes in float32
# Arrays that devices sum, counted in what XLA compiles for the CPU: it may launch several as one, and sums each by
# itself. Over tensor ranks m·D in a layer's backward pass: of queries, keys, values, gate and up; XLA's CPU compiler
# sums each before it adds them; the GPU's adds them first, which leaves two.
_BACKWARD_SUMS = 5
# Beside what was looked up in the table [m, D], one number of each token: the greatest logit, the normaliser, the
# chosen one, the entropy; when learning, their gradients and tokens counted, and [m, D] of the hidden state.
_HEAD_SUMS, _LEARNING_HEAD_SUMS = 4, 7
# Over replicas the gradients of a layer (four of attention, three of the MLP, two norms), of table, head and last
# norm, and the numbers that a loss reports.
_LAYER_GRADIENTS, _OTHER_GRADIENTS, _LOSS_NUMBERS = 9, 3, 4
# Over the ranks that cut weights, of each cut one (all layers' are one array): table, head and seven of a layer.
_CUT_WEIGHTS = 9
_NORMS = 2  # of the gradient: for the clip, and for the report
# Over all devices: who runs and who is free; counts, ends and starts.
_ASKED_EACH_TOKEN, _TOLD_EACH_CHUNK = 3, 4
_SUMS_TO_AGREE = 2  # how many rows each process has, and what it knows of them
# Attention's products keep nothing for the backward pass (models/transformer.py): they run again, then twice for the
# gradients. So does pointwise work.
_BACKWARD_ATTENTION = 3
BACKWARD_POINTWISE = 3


def product(rows: float, depth: float, columns: float, device: DeviceProfile) -> Seconds:
    """Return a product [m, k] · [k, n]: 2 m k n / C, and then its operands and result over W."""
    moved = _NUMBER * (rows * depth + depth * columns + rows * columns)
    return Seconds(
        compute=2.0 * rows * depth * columns / (device.matmul_flops * device.matmul_efficiency),
        memory=moved / (device.memory_bandwidth * device.bandwidth_efficiency),
    )


def layer_products(model: ModelSize, tokens: float, tensor: int, device: DeviceProfile) -> Seconds:
    """Return the products of one layer with its weights, one by one: small ones are mostly their operands."""
    return sum((product(*sizes, device) for sizes in _products(model, tokens, tensor)), Seconds())


def _products(model: ModelSize, tokens: float, tensor: int) -> Iterator[tuple[float, float, float]]:
    decoder = model.decoder
    width, heads = decoder.width, decoder.padded_heads * decoder.head_width / tensor
    kept = decoder.kv_heads * decoder.head_width / min(tensor, decoder.kv_heads)
    yield from ((tokens, width, heads), (tokens, width, kept), (tokens, width, kept), (tokens, heads, width))
    rows = tokens * max(decoder.experts_per_token, 1)
    inner = decoder.mlp_width / tensor
    yield from ((rows, width, inner), (rows, width, inner), (rows, inner, width))
    if decoder.experts > 0:
        yield tokens, width, decoder.experts


def score_bytes(scores: float) -> float:
    """Return what so many scores of attention move: written, exponentiated, mixed."""
    return _NUMBER * _SCORE_PASSES * scores


def logit_bytes(logits: float) -> float:
    """Return what so many logits move beside their product: normalised, chosen from, their entropy taken."""
    return _NUMBER * _LOGIT_PASSES * logits


def attention(queries: float, keys: float, model: ModelSize, tensor: int, device: DeviceProfile) -> Seconds:
    """Return one layer's attention of m queries to so many keys each, masked ones included.

    4 m N H keys / (C η), m N keys scores in passes over memory, and queries, keys, values and the result turned from
    positions first to heads first and back.
    """
    decoder = model.decoder
    heads = decoder.padded_heads / tensor
    arithmetic = 4.0 * queries * heads * decoder.head_width * keys
    scores = score_bytes(queries * heads * keys)
    turned = 2.0 * _NUMBER * queries * decoder.head_width * 4 * heads
    return Seconds(
        compute=arithmetic / (device.matmul_flops * device.attention_efficiency),
        memory=scores / (device.memory_bandwidth * device.softmax_efficiency)
        + turned / (device.memory_bandwidth * device.bandwidth_efficiency),
    )


def pointwise_bytes(model: ModelSize, tokens: float, tensor: int) -> float:
    """Return what one layer's norms, rotations, gates and residuals read and write: (10 D + 6 F/t) numbers a token."""
    decoder = model.decoder
    inner = decoder.mlp_width * max(decoder.experts_per_token, 1) / tensor
    return _NUMBER * tokens * (cost.PASSES_OVER_WIDTH * decoder.width + cost.PASSES_OVER_MLP * inner)


def sums(arrays: float, size: float, where: Span, device: DeviceProfile) -> Seconds:
    """Return the time to sum so many arrays of `size` bytes over a group, one after the other: α + bytes / B each.

    Between processes α is waiting: for a socket's thread that must have its turn on a core, and which leaves the
    core to whoever else computes there.
    """
    once = cost.all_reduce(size, where, device)
    if where.inside:
        return once.times(arrays)
    return Seconds(links=arrays * once.links, idle=arrays * once.latency)


def _activations(
    arrays: float, model: ModelSize, tokens: float, where: Span, device: DeviceProfile
) -> Seconds:
    """Return the sums of so many activations [m, D] over tensor ranks."""
    return sums(arrays, _NUMBER * tokens * model.decoder.width, where, device)


def forward_layer(
    model: ModelSize, tokens: float, length: float, tensor: int, where: Span, device: DeviceProfile
) -> Seconds:
    """Return one layer over whole sequences of `length`: products, attention, pointwise work, two sums over t."""
    pointwise = pointwise_bytes(model, tokens, tensor) / (
        device.memory_bandwidth * device.pointwise_efficiency
    )
    return (
        layer_products(model, tokens, tensor, device)
        + attention(tokens, length, model, tensor, device)
        + Seconds(memory=pointwise, latency=FORWARD_OPERATIONS * device.product_seconds)
        + _activations(2.0, model, tokens, where, device)
    )


def backward_layer(
    model: ModelSize,
    tokens: float,
    length: float,
    tensor: int,
    where: Span,
    remat: bool,
    device: DeviceProfile,
) -> Seconds:
    """Return one layer's backward pass: each product twice, attention and pointwise work again and twice.

    With `remat` products and their sums run again as well. m·D is summed five times.
    """
    pointwise = BACKWARD_POINTWISE * pointwise_bytes(model, tokens, tensor)
    products = layer_products(model, tokens, tensor, device)
    return (
        products.times(3.0 if remat else 2.0)
        + attention(tokens, length, model, tensor, device).times(_BACKWARD_ATTENTION)
        + Seconds(
            memory=pointwise / (device.memory_bandwidth * device.gradient_efficiency),
            latency=BACKWARD_OPERATIONS * device.product_seconds,
        )
        + _activations(_BACKWARD_SUMS + (2.0 if remat else 0.0), model, tokens, where, device)
    )


def head(model: ModelSize, tokens: float, ways: int, where: Span, device: DeviceProfile) -> Seconds:
    """Return embedding and head of a forward pass: a look-up, a product, passes over logits, sums over ranks.

    The table is cut over the vocabulary: what is looked up is summed, [m, D] once, and four numbers of each token.
    A head of one number is a look-up and a pass over [m, D].
    """
    small = 0.0 if _outputs(model) == 1 else _HEAD_SUMS
    return (
        _head_alone(model, tokens, ways, device)
        + _activations(1.0, model, tokens, where, device)
        + sums(small, _NUMBER * tokens, where, device)
    )


def learning_head(model: ModelSize, tokens: float, ways: int, where: Span, device: DeviceProfile) -> Seconds:
    """Return embedding and head forward, and forward and back again in the backward pass.

    Of a distribution over tokens [m, D] is summed twice and seven numbers of each token, of a single number what is
    looked up and one more.
    """
    large, small = (1.0, 1.0) if _outputs(model) == 1 else (2.0, _LEARNING_HEAD_SUMS)
    return (
        _head_alone(model, tokens, ways, device).times(3.0)
        + _activations(large, model, tokens, where, device)
        + sums(small, _NUMBER * tokens, where, device)
    )


def _outputs(model: ModelSize) -> float:
    return model.head_products / model.decoder.width


def _head_alone(model: ModelSize, tokens: float, ways: int, device: DeviceProfile) -> Seconds:
    outputs, width = _outputs(model), model.decoder.width
    if outputs == 1:
        passed = 2.0 * _NUMBER * tokens * width
        return Seconds(memory=passed / (device.memory_bandwidth * device.pointwise_efficiency))
    logits = logit_bytes(tokens * outputs / ways)
    return product(tokens, width, outputs / ways, device) + Seconds(
        memory=logits / (device.memory_bandwidth * device.logits_efficiency)
    )


def gradient_sums(size: float, layers: float, where: Span, device: DeviceProfile) -> Seconds:
    """Return the sum of gradients over replicas: `size` bytes in nine arrays of each layer, and of the loss."""
    arrays = _LAYER_GRADIENTS * layers + _OTHER_GRADIENTS + _LOSS_NUMBERS
    return sums(arrays, size / arrays, where, device)


def norms(where: Span, device: DeviceProfile) -> Seconds:
    """Return what the norms of a gradient take whose arrays are cut over these ranks: a number for each array."""
    return sums(_NORMS * _CUT_WEIGHTS, _NUMBER, where, device)


def agreement(everyone: Span, device: DeviceProfile) -> Seconds:
    """Return what processes take to tell each other small numbers of their rows: two sums, a program for each."""
    told = sums(_SUMS_TO_AGREE, _NUMBER, everyone, device)
    return told + Seconds(host=_SUMS_TO_AGREE * device.dispatch_seconds)


def chunk_read(everyone: Span, device: DeviceProfile) -> Seconds:
    """Return what all devices tell all others of a chunk of tokens."""
    return sums(_TOLD_EACH_CHUNK, _NUMBER, everyone, device)


def switched_arrays(moved: Seconds, inside: bool) -> Seconds:
    """Return a switch of weights, whose one α is here that of each array that was cut."""
    alpha = _CUT_WEIGHTS * moved.latency
    waited = Seconds(latency=alpha) if inside else Seconds(idle=alpha)
    return dataclasses.replace(moved, latency=0.0) + waited


def decode_layer(
    model: ModelSize, rows: float, positions: float, tensor: int, where: Span, device: DeviceProfile
) -> Seconds:
    """Return one layer of a decode step: products of few rows, their caches read, pointwise work, two sums over t.

    `positions` are those of a slot, used or not; both caches are read whole and scored.
    """
    decoder = model.decoder
    cached = 2.0 * _NUMBER * rows * positions * decoder.head_width
    cached *= decoder.kv_heads / min(tensor, decoder.kv_heads)
    scores = score_bytes(rows * positions * decoder.padded_heads / tensor)
    pointwise = pointwise_bytes(model, rows, tensor) / device.pointwise_efficiency
    moved = cached / device.bandwidth_efficiency + scores / device.softmax_efficiency + pointwise
    return (
        layer_products(model, rows, tensor, device)
        + Seconds(memory=moved / device.memory_bandwidth, latency=device.pointwise_seconds)
        + _activations(2.0, model, rows, where, device)
    )


def draw(
    model: ModelSize, rows: float, ways: int, where: Span, everyone: Span, device: DeviceProfile
) -> Seconds:
    """Return what a decode step does beside its layers: look-up, logits, a token drawn, and who still runs asked."""
    outputs = _outputs(model)
    logits = logit_bytes(rows * outputs / ways)
    return (
        product(rows, model.decoder.width, outputs / ways, device)
        + Seconds(memory=logits / (device.memory_bandwidth * device.sampling_efficiency))
        + _activations(1.0, model, rows, where, device)
        + sums(_ASKED_EACH_TOKEN, _NUMBER, everyone, device)
    )
