"""Measure what a model is made of on simulated devices: layers by the difference of two depths, and their parts.

Reference sizes are fixed here and no config's: a plan's are reached by the formulas of `simulated`. What products,
attention and launches leave unexplained of a reference layer is what its pointwise work takes, forward and backward;
of a decode step it is what few rows cost beside them. Knows those formulas, no role and no plan.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxflow.engine import attention
from jaxflow.engine.generate import Generator
from jaxflow.engine.layout_rules import Parallelism
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import untruncated
from jaxflow.engine.sharding import generation_layout
from jaxflow.engine.slots import Address, SlotPrograms, Slots
from jaxflow.engine.state import new_weights
from jaxflow.mapping import simulated, simulated_calls
from jaxflow.mapping.cost import Span
from jaxflow.mapping.devices import DeviceProfile
from jaxflow.mapping.engine_profile import JAXFLOW
from jaxflow.mapping.load import RoleLoad, Workload
from jaxflow.mapping.measuring import Bench
from jaxflow.mapping.model_size import model_size
from jaxflow.mapping.stages import Setting
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.layers import AttentionRule, Surroundings
from jaxflow.models.transformer import LanguageModel, Unstacked, describe
from jaxflow.types import Prompts

_ALONE = Span(1, 1)
_DECODER = DecoderConfig(
    vocabulary_size=256,
    width=128,
    layers=1,
    heads=4,
    kv_heads=4,
    head_width=32,
    mlp_width=384,
    compute_dtype="float32",
    remat=False,
)
_DEPTHS = (1, 4)
_ROWS, _LENGTH = 64, 32  # of a pass, on each device
_SLOTS, _POSITIONS, _STEPS = 128, 32, 8  # of a decode chunk, on each device
_GENERATED, _PROMPT = (16, 256), 8  # rows of calls that generate, on each device; tokens of a prompt
_ATTENTION = (8, 256, 4)  # rows, positions, heads
_HEAD_WIDTHS = (32, 128)
_LOGITS = (2048, 128)
# Times what memory gives: what caches can; where others disturbed, less may be left to explain
_FASTEST = 4.0
_ARGUMENTS = 48  # arrays that a program of an update is given


def _decoder(depth: int) -> DecoderConfig:
    return dataclasses.replace(_DECODER, layers=depth)


def layer_seconds(on: Bench) -> tuple[float, float]:
    """Return one reference layer's forward and backward pass, each device on rows and weights of its own."""
    forward, both = zip(*(_pass_seconds(on, depth) for depth in _DEPTHS), strict=True)
    layers = _DEPTHS[1] - _DEPTHS[0]
    ahead = (forward[1] - forward[0]) / layers
    return ahead, (both[1] - both[0]) / layers - ahead


def _pass_seconds(on: Bench, depth: int) -> tuple[float, float]:
    """Return the seconds of a forward pass, and of one with its backward pass."""
    model = describe(_decoder(depth), LanguageModel)
    around = Surroundings(attention.whole_sequence(on.platform), lambda x, names: x)
    spec = PartitionSpec("device")
    whole = jax.NamedSharding(on.mesh, spec)
    # Weights and tokens as in a run: equal ones would make gradients of numbers too small for the CPU's fast path.
    keys = jax.random.split(jax.random.key(0), on.mesh.size)
    weights = jax.jit(jax.vmap(model.create), out_shardings=whole)(keys)
    rows = np.random.default_rng(0).integers(0, _DECODER.vocabulary_size, (on.mesh.size, _ROWS, _LENGTH))
    tokens = jax.device_put(rows.astype(np.int32), whole)

    def hidden(params, tokens):
        return jnp.sum(jnp.square(model.bind(params).backbone(tokens, around)))

    def seconds_of(function: Callable) -> float:
        def of_one(params, tokens):
            one = jax.tree.map(lambda leaf: leaf[0], params)
            return jax.tree.map(lambda leaf: leaf[None], function(one, tokens[0]))

        each = jax.shard_map(of_one, mesh=on.mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
        return on.typical(each, weights, tokens)

    return seconds_of(hidden), seconds_of(jax.grad(hidden))


def attention_parts(on: Bench) -> tuple[float, float]:
    """Return FLOP/s of attention's products, and seconds of each score beside them: from two widths of heads."""
    rows, length, heads = _ATTENTION
    narrow, wide = (_attention_seconds(on, width) / (rows * length * heads) for width in _HEAD_WIDTHS)
    flops = 4.0 * (_HEAD_WIDTHS[1] - _HEAD_WIDTHS[0]) * length / (wide - narrow)
    return flops, max(narrow / length - 4.0 * _HEAD_WIDTHS[0] / flops, 1e-12)


def _attention_seconds(on: Bench, width: int) -> float:
    rows, length, heads = _ATTENTION
    attend = attention.whole_sequence(on.platform)
    rule = AttentionRule(scale=width**-0.5, softcap=0.0, window=0, local=False)

    def mixed(x):
        flat = x.reshape(-1, length, heads, width)
        return attend(flat, flat, flat, rule, None)[0]

    return on.typical(mixed, on.each(rows, length, heads, width))


def logit_seconds(on: Bench) -> float:
    """Return what one logit takes beside its product: normalised, chosen from, its entropy."""
    rows, vocabulary = _LOGITS

    def said(x: Array):
        normaliser = jax.nn.logsumexp(x, axis=-1, keepdims=True)
        log_probs = x - normaliser
        return log_probs[..., 0] - jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    return on.typical(said, on.each(rows, vocabulary)) / (rows * vocabulary)


def dispatch_seconds(on: Bench) -> float:
    """Return what starting a program takes that is given as many arrays as an update's."""
    arrays = [on.each(8) for _ in range(_ARGUMENTS)]
    return on.typical(lambda *arrays: [array + 1 for array in arrays], *arrays)


def decode_seconds(on: Bench) -> tuple[float, float]:
    """Return one layer of a decode step, and what the step does beside its layers."""
    shallow, deep = (_decode_step(on, depth) for depth in _DEPTHS)
    layer = (deep - shallow) / (_DEPTHS[1] - _DEPTHS[0])
    return layer, shallow - _DEPTHS[0] * layer


def _decode_step(on: Bench, depth: int) -> float:
    devices = list(on.mesh.devices.flat)
    layout = generation_layout(make_mesh(len(devices), 1, 1, 1, devices), _decoder(depth))
    model = describe(_decoder(depth), LanguageModel)
    programs = SlotPrograms(model, layout, "float32", _STEPS)
    params = new_weights(model, layout, 0, 0)
    weights, empty = programs.unstacked(params, keep={}), programs.slots(len(devices) * _SLOTS, _POSITIONS)
    rows = empty.sequences.last.shape[0]
    # None ends: a chunk takes all its steps.
    far = jax.device_put(np.full(rows, 1 << 30, np.int32), empty.sequences.last.sharding)
    running = jax.device_put(np.ones(rows, bool), empty.sequences.running.sharding)
    sequences = dataclasses.replace(empty.sequences, ends=far, running=running)
    slots = [dataclasses.replace(empty, sequences=sequences)]
    waiting = jax.device_put(np.zeros(len(devices), np.int32), layout.sharding(("batch",)))
    address = Address(np.uint32(0), np.int32(0), np.int32(0))
    sampling = untruncated(_STEPS)

    def chunk() -> Slots:
        slots[0], _, _ = programs.decode(weights, slots[0], waiting, address, None, sampling)
        return slots[0]

    return on.median(chunk) / _STEPS


def generation_times(on: Bench) -> list[float]:
    """Return the times of whole calls that generate a token for each of few rows, and of many."""
    devices = list(on.mesh.devices.flat)
    layout = generation_layout(make_mesh(len(devices), 1, 1, 1, devices), _DECODER)
    model = describe(_DECODER, LanguageModel)
    generator = Generator(model, layout, "float32", max(_GENERATED))
    weights = generator.unstacked(new_weights(model, layout, 0, 0), keep={})
    return [
        on.median(functools.partial(_generated, generator, weights, len(devices) * n)) for n in _GENERATED
    ]


def _generated(generator: Generator, weights: Unstacked, rows: int) -> np.ndarray:
    numbers = np.arange(rows, dtype=np.int32)
    width, pad = _PROMPT, np.full(rows, -1, np.int32)
    tokens = np.random.default_rng(0).integers(0, _DECODER.vocabulary_size, (rows, width)).astype(np.int32)
    prompts = Prompts(tokens, np.full(rows, width, np.int32), numbers, pad, numbers, 0, ())
    return generator.generate(weights, prompts, untruncated(1), 0, 0, 0, 0).tokens


def with_parts(on: Bench, profile: DeviceProfile) -> DeviceProfile:
    """Return a profile with its simulated devices' shares of the memory's peak, and what starting programs takes."""
    whole = profile.memory_bandwidth
    flops, score = attention_parts(on)
    known = dataclasses.replace(
        profile,
        attention_efficiency=min(1.0, flops / profile.matmul_flops),
        softmax_efficiency=min(_FASTEST, simulated.score_bytes(1.0) / score / whole),
        logits_efficiency=simulated.logit_bytes(1.0) / logit_seconds(on) / whole,
        dispatch_seconds=dispatch_seconds(on),
        simulated=on.mesh.size,
    )
    forward, backward = layer_seconds(on)
    known = _with_pointwise(known, forward, backward)
    known = _with_decoding(known, *decode_seconds(on))
    return _with_generation(known, generation_times(on))


def _with_generation(profile: DeviceProfile, times: Sequence[float]) -> DeviceProfile:
    """Return a profile that explains whole calls that generate, of few rows and of many: what the host does for each
    row, and for a call."""
    load = RoleLoad("actor", model_size(_DECODER, True), True, 1, 0, 0, 0, 0)
    devices, left = int(profile.simulated), []
    alone = Parallelism(devices, 1, 1, 1, 1, 1)
    for rows, seconds in zip(_GENERATED, times, strict=True):
        work = Workload(devices * rows, _PROMPT, 1, 1, False, rows)
        setting = Setting(work, JAXFLOW, profile, devices)
        left.append(seconds - simulated_calls.generate_seconds(load, alone, setting, rows).total)
    few, many = (devices * rows for rows in _GENERATED)
    each = max((left[1] - left[0]) / (many - few), 0.0)
    return dataclasses.replace(
        profile, generation_row_seconds=each, generation_seconds=max(left[0] - few * each, 0.0)
    )


def _with_pointwise(profile: DeviceProfile, forward: float, backward: float) -> DeviceProfile:
    """Return a profile whose pointwise shares explain a reference layer's two passes."""
    model, tokens = model_size(_DECODER, True), _ROWS * _LENGTH
    free = dataclasses.replace(profile, pointwise_efficiency=float("inf"), gradient_efficiency=float("inf"))
    ahead = simulated.forward_layer(model, tokens, _LENGTH, 1, _ALONE, free).total
    back = simulated.backward_layer(model, tokens, _LENGTH, 1, _ALONE, False, free).total
    moved = simulated.pointwise_bytes(model, tokens, 1) / profile.memory_bandwidth
    return dataclasses.replace(
        profile,
        pointwise_efficiency=_share(moved, forward - ahead),
        gradient_efficiency=_share(simulated.BACKWARD_POINTWISE * moved, backward - back),
    )


def _with_decoding(profile: DeviceProfile, layer: float, beside: float) -> DeviceProfile:
    """Return a profile that explains a reference decode step: its layers' small operations, and its draw."""
    model = model_size(_DECODER, True)
    everyone = Span(profile.simulated, 1)
    free = dataclasses.replace(profile, pointwise_seconds=0.0, sampling_efficiency=float("inf"))
    known = simulated.decode_layer(model, _SLOTS, _POSITIONS, 1, _ALONE, free).total
    drawn = simulated.draw(model, _SLOTS, 1, _ALONE, everyone, free).total
    logits = simulated.logit_bytes(_SLOTS * model.decoder.padded_vocabulary_size) / profile.memory_bandwidth
    return dataclasses.replace(
        profile,
        pointwise_seconds=max(layer - known, 1e-9),
        sampling_efficiency=_share(logits, beside - drawn),
    )


def _share(at_peak: float, left: float) -> float:
    """Return the share of the memory's peak at which what takes `at_peak` seconds there takes what is left."""
    return min(_FASTEST, at_peak / max(left, 1e-9))
