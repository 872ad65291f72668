"""Bytes that the switch from training to generation moves, counted in compiled programs, beside the formulas.

Three engines of HybridFlow's Table 2 (arXiv 2409.19256), each as compiled programs on simulated CPU devices:
  hybridflow    jaxflow's own transition: generation takes every (t/t_g)-th, (p/p_g)-th rank
  hybridflow_v  the vanilla grouping, generation on consecutive ranks: gather the whole model inside each training
                replica, then cut the generation shard out of it
  ds_chat       ZeRO-3 training: every weight cut over all devices, gathered whole, then cut

    python experiments/transition.py [--json FILE] [--executed] [--speed]

Cases on 8 and 16 devices run, and their result is compared bit by bit; the paper's geometries on 64 and 128 devices
are compiled from shapes alone. Everything is float32: XLA on CPU widens bfloat16 collectives, and bytes in bfloat16
are half. `--executed` leaves the paper's geometries out. `--speed` instead times a 110M model's transition against
a plain copy of the bytes that must move.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxflow.engine.compiled import Collective, received_by_position
from jaxflow.engine.layout_rules import Parallelism
from jaxflow.engine.mesh import AXES, make_mesh
from jaxflow.engine.sharding import TABLE, Layout, generation_layout, training_layout
from jaxflow.engine.shards import received_elements, redundant_elements
from jaxflow.engine.state import new_weights
from jaxflow.engine.transition import BUCKET_BYTES, transition
from jaxflow.engine.transition_plan import Leaf, leaves_of, plan_transition
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import LanguageModel, Model, Params, describe

ENGINES = ("hybridflow", "hybridflow_v", "ds_chat")
DTYPE, ITEMSIZE = "float32", 4
SMALL_BUCKET = 64 << 10  # bytes: the small model has several of them, as the large ones do of BUCKET_BYTES
REPEATS = 3  # the fastest counts


@dataclasses.dataclass(frozen=True)
class Case:
    """One model on one division of devices."""

    name: str
    config: DecoderConfig
    parallelism: Parallelism
    executed: bool
    engines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine in one case. Bytes are those of the device that has most of them."""

    engine: str
    case: str
    devices: int
    executed: bool  # else compiled from shapes alone
    dtype: str
    model_bytes: int  # M
    measured_bytes: int  # received, counted in the compiled programs' collectives
    formula_bytes: int  # Table 2, leaf by leaf: norms are cut over pipeline stages alone
    minimum_bytes: int  # of the generation shard, what the training shard lacks, from index maps
    redundant_bytes: int  # of the training shard, what the generation shard lacks, from index maps
    formula_redundant_bytes: int
    # Weights on one device, sources released bucket by bucket, compiler's temporaries included
    peak_bytes: int
    formula_peak_bytes: int
    largest_bucket_bytes: int
    collectives: list[dict[str, Any]]


def _decoder(width: int, layers: int, heads: int, kv_heads: int, mlp: int, vocabulary: int) -> DecoderConfig:
    return DecoderConfig(
        vocabulary_size=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        mlp_width=mlp,
    )


SMALL = _decoder(width=128, layers=4, heads=16, kv_heads=8, mlp=256, vocabulary=1024)
LLAMA_7B = _decoder(4096, 32, 32, 32, 11008, 32000)
LLAMA_13B = _decoder(5120, 40, 40, 40, 13824, 32000)
LLAMA_34B = _decoder(8192, 48, 64, 8, 22016, 32000)
LLAMA_70B = _decoder(8192, 80, 64, 8, 28672, 32000)
SPEED_110M = _decoder(768, 12, 16, 16, 2048, 16384)


def _case(model: str, config: DecoderConfig, **sizes: int) -> Case:
    p = dataclasses.replace(Parallelism(1, 1, 1, 1, 1, 1), **sizes)
    trained = f"p{p.pipe}-t{p.tensor}-d{p.data}" + (f"-f{p.fsdp}" if p.fsdp > 1 else "")
    generated = f"p{p.generation_pipe}-t{p.generation_tensor}-d{p.micro_data}-d{p.data * p.fsdp}"
    # Table 2 has no ZeRO beside tensor and pipeline parallelism.
    engines = ENGINES if p.fsdp == 1 else ENGINES[:1]
    return Case(f"{model} {trained} to {generated}", config, p, config is SMALL, engines)


CASES = (
    _case("small", SMALL, data=2, tensor=4, generation_tensor=2),  # Fig. 8
    _case("small", SMALL, tensor=8, generation_tensor=4),
    _case("small", SMALL, tensor=8, generation_tensor=2),
    _case("small", SMALL, tensor=8, generation_tensor=1),
    _case("small", SMALL, pipe=2, tensor=4, generation_tensor=2),
    _case("small", SMALL, pipe=2, tensor=4, generation_tensor=2, generation_pipe=2),
    _case("small", SMALL, fsdp=2, tensor=4, generation_tensor=2),
    _case("small", SMALL, data=2, tensor=8, generation_tensor=2),
    _case("small", SMALL, data=2, pipe=4, tensor=2, generation_tensor=2, generation_pipe=2),
    _case("small", SMALL, pipe=2, tensor=8, generation_tensor=8),
    _case("small", SMALL, fsdp=2, pipe=2, tensor=4, generation_tensor=2),
    _case("7B", LLAMA_7B, data=8, tensor=8, generation_tensor=2),
    _case("13B", LLAMA_13B, data=8, tensor=8, generation_tensor=4),
    _case("34B", LLAMA_34B, data=4, pipe=4, tensor=8, generation_tensor=8),
    _case("70B", LLAMA_70B, data=2, pipe=8, tensor=8, generation_tensor=8),
)


SPEED_CASES = (
    _case("110M", SPEED_110M, data=2, tensor=4, generation_tensor=2),
    _case("110M", SPEED_110M, tensor=8, generation_tensor=2),
    _case("110M", SPEED_110M, pipe=2, tensor=4, generation_tensor=2),
    _case("110M", SPEED_110M, fsdp=2, tensor=4, generation_tensor=2),
)

Stations = tuple[Any, ...]
"""The layouts that an engine's weights pass through, each a tree of shardings."""


def _hybridflow(case: Case, model: Model, devices: list[jax.Device]) -> Stations:
    p = case.parallelism
    mesh = make_mesh(p.data, p.fsdp, p.tensor, p.generation_tensor, devices, p.pipe, p.generation_pipe)
    return training_layout(mesh).weights(model.names), generation_layout(mesh).weights(model.names)


def _vanilla_mesh(p: Parallelism, devices: list[jax.Device]) -> Mesh:
    """Return the mesh with the axes of each pair exchanged: the micro axis is the major one."""
    axes = ("data", "fsdp", "expert", "micro_pipe", "pipe", "micro", "tensor")
    stages = (p.pipe // p.generation_pipe, p.generation_pipe)
    sizes = (p.data, p.fsdp, 1, *stages, p.tensor // p.generation_tensor, p.generation_tensor)
    return Mesh(np.reshape(devices, sizes), axes, axis_types=(AxisType.Auto,) * len(axes))


def vanilla_table() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the engine's table with training ranks in the vanilla order; generation's column is the same."""
    pairs = {"pipe": ("micro_pipe", "pipe"), "tensor": ("micro", "tensor")}
    micro = ("micro_pipe", "micro")

    def vanilla(axes: tuple[str, ...]) -> tuple[str, ...]:
        if not set(axes) & set(micro):
            return axes
        return tuple(one for axis in axes if axis not in micro for one in pairs[axis])

    return {name: (vanilla(training), generation) for name, (training, generation) in TABLE.items()}


def _whole(mesh: Mesh, model: Model) -> Any:
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), model.shapes)


def _hybridflow_v(case: Case, model: Model, devices: list[jax.Device]) -> Stations:
    mesh = _vanilla_mesh(case.parallelism, devices)
    training, generation = (
        Layout(mesh, {name: columns[side] for name, columns in vanilla_table().items()}).weights(model.names)
        for side in (0, 1)
    )
    return training, _whole(mesh, model), generation


def _ds_chat(case: Case, model: Model, devices: list[jax.Device]) -> Stations:
    mesh = _vanilla_mesh(case.parallelism, devices)

    generation = Layout(mesh, {name: columns[1] for name, columns in TABLE.items()})

    def cut(shape: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> NamedSharding:
        # Along the dimension that generation cuts, where it cuts one: ZeRO's flat parts know of no dimension.
        divisible = [i for i, size in enumerate(shape.shape) if size % len(devices) == 0]
        first = min(divisible, key=lambda i: names[i] not in ("vocabulary", "heads", "kv_heads", "mlp"))
        return NamedSharding(mesh, PartitionSpec(*(None,) * first, mesh.axis_names))

    training = jax.tree.map(cut, model.shapes, model.names)
    return training, _whole(mesh, model), generation.weights(model.names)


_STATIONS: Mapping[str, Callable[[Case, Model, list[jax.Device]], Stations]] = {
    "hybridflow": _hybridflow,
    "hybridflow_v": _hybridflow_v,
    "ds_chat": _ds_chat,
}


@dataclasses.dataclass(frozen=True)
class Formulas:
    """Table 2, in bytes. All matrices are cut over p·t(·f); the layers' norms over p; the final norm over nothing."""

    received: int
    redundant: int
    peak: int


def formulas(engine: str, config: DecoderConfig, p: Parallelism) -> Formulas:
    """Return what the paper says that an engine receives, holds for nothing and holds at most, per device."""
    layer_norms, final_norm = 2 * config.layers * config.width, config.width
    matrices = config.parameter_count - layer_norms - final_norm
    whole = config.parameter_count
    training = matrices // (p.tensor * p.pipe * p.fsdp) + layer_norms // p.pipe + final_norm
    uncut = final_norm + (layer_norms if p.pipe == 1 else 0)
    match engine:
        case "hybridflow":  # M/(t_g p_g) − M/(tp)
            generation = matrices // (p.generation_tensor * p.generation_pipe)
            generation += layer_norms // p.generation_pipe + final_norm
            elements = (generation - training, 0, generation)
        case "hybridflow_v":  # M − M/(tp)
            elements = (whole - training, training - uncut, whole)
        case _:  # M − M/(tpd)
            elements = (whole - whole // p.devices, whole // p.devices, whole)
    return Formulas(*(ITEMSIZE * count for count in elements))


def _run(model: Model, stations: Stations, bucket_bytes: int) -> None:
    """Run the transitions on random weights; raises AssertionError if a bit changes."""
    expected = _weights(model.config)
    params = jax.device_put(expected, stations[0])
    for station in stations[1:]:
        params, _ = transition(params, station, DTYPE, release=True, bucket_bytes=bucket_bytes)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), expected)


@functools.cache
def _weights(config: DecoderConfig) -> Params:
    one_device = training_layout(make_mesh(1, 1, 1, 1, jax.devices()[:1]))
    return jax.device_get(new_weights(_model(config), one_device, 0, 0))


_model = functools.cache(lambda config: describe(config, LanguageModel))


def row_of(engine: str, case: Case) -> Row:
    """Compile an engine's transition of a case, run it if it is small, and count."""
    model = _model(case.config)
    stations = _STATIONS[engine](case, model, jax.devices()[: case.parallelism.devices])
    bucket_bytes = SMALL_BUCKET if case.executed else BUCKET_BYTES
    legs = [leaves_of(model.shapes, source, target) for source, target in itertools.pairwise(stations)]
    plans = [plan_transition(leaves, DTYPE, True, bucket_bytes) for leaves in legs]
    if case.executed:
        _run(model, stations, bucket_bytes)
    collectives = [collective for plan in plans for collective in plan.cost.collectives]
    ends = leaves_of(model.shapes, stations[0], stations[-1])
    expected = formulas(engine, case.config, case.parallelism)
    return Row(
        engine=engine,
        case=case.name,
        devices=case.parallelism.devices,
        executed=case.executed,
        dtype=DTYPE,
        model_bytes=ITEMSIZE * case.config.parameter_count,
        measured_bytes=max(received_by_position(collectives, case.parallelism.devices)),
        formula_bytes=expected.received,
        minimum_bytes=_most(received_elements, ends),
        redundant_bytes=_most(redundant_elements, ends),
        formula_redundant_bytes=expected.redundant,
        peak_bytes=max(plan.cost.peak_bytes for plan in plans),
        formula_peak_bytes=expected.peak,
        largest_bucket_bytes=max(
            sum(ITEMSIZE * math.prod(leaves[i].target.shard_shape(leaves[i].shape)) for i in bucket.indices)
            for leaves, plan in zip(legs, plans, strict=True)
            for bucket in plan.buckets
        ),
        collectives=_listed(collectives),
    )


def _most(count: Callable[..., dict[int, int]], leaves: tuple[Leaf, ...]) -> int:
    total: collections.Counter[int] = collections.Counter()
    for leaf in leaves:
        total.update(count(leaf.shape, leaf.source, leaf.target))
    return ITEMSIZE * max(total.values())


def _listed(collectives: list[Collective]) -> list[dict[str, Any]]:
    """Count alike ones: the order inside a group is that of the parts it puts together, and left out here."""
    counts = collections.Counter(
        (one.kind, tuple(sorted(tuple(sorted(group)) for group in one.groups))) for one in collectives
    )
    return [{"kind": kind, "count": count, "groups": groups} for (kind, groups), count in counts.items()]


_HEADING = (
    f"{'case':44} {'engine':12} {'received':>9} {'formula':>9} {'minimum':>9} {'redundant':>9} {'formula':>9}"
    f" {'peak':>9} {'formula':>9}  collectives: count × groups × devices"
)


def _line(row: Row) -> str:
    shares = (
        row.measured_bytes,
        row.formula_bytes,
        row.minimum_bytes,
        row.redundant_bytes,
        row.formula_redundant_bytes,
        row.peak_bytes,
        row.formula_peak_bytes,
    )
    cells = " ".join(f"{share / row.model_bytes:8.5f}M" for share in shares)
    exchanges = ", ".join(
        f"{one['count']} × {len(one['groups'])} × {len(one['groups'][0])}" for one in row.collectives
    )
    return f"{row.case:44} {row.engine:12} {cells}  {exchanges}"


def _timed(calls: list[Callable[[], Any]]) -> list[tuple[float, float]]:
    """Return the least wall and CPU seconds of each call, taken by turns behind a first round that compiles."""
    best = [(math.inf, math.inf) for _ in calls]
    for round_ in range(1 + REPEATS):
        for i, call in enumerate(calls):
            cpu, started = time.process_time(), time.perf_counter()
            jax.block_until_ready(call())
            taken = (time.perf_counter() - started, time.process_time() - cpu)
            if round_ > 0:
                best[i] = (min(best[i][0], taken[0]), min(best[i][1], taken[1]))
    return best


def speed() -> None:
    """Print the seconds of transitions of a 110M model and of a copy of the bytes that must move."""
    model, devices = _model(SPEED_110M), jax.devices()
    print(f"{SPEED_110M.parameter_count / 1e6:.0f}M parameters, {DTYPE}, {len(devices)} devices")
    for case in SPEED_CASES:
        training, generation = _hybridflow(case, model, devices)
        params = jax.jit(model.create, out_shardings=training)(jax.random.key(0))
        _, report = transition(params, generation, DTYPE)
        moved = sum(report.received_bytes.values())
        # As many bytes, from and to the same devices, each its own: what moving them costs at least.
        everywhere = NamedSharding(make_mesh(len(devices), 1, 1, 1, devices), PartitionSpec(AXES[0]))
        block = jax.device_put(
            np.ones(moved // ITEMSIZE // len(devices) * len(devices), np.float32), everywhere
        )
        copy = jax.jit(jnp.copy, out_shardings=everywhere)
        switched, copied = _timed(
            [
                functools.partial(lambda *given: transition(*given)[0], params, generation, DTYPE),
                functools.partial(copy, block),
            ]
        )
        print(
            f"{case.name:32} {moved / 2**20:5.0f} MiB received in all: {switched[0]:.2f} s, copied {copied[0]:.2f} s,"
            f" ratio {switched[0] / copied[0]:.1f}; CPU seconds {switched[1]:.2f} and {copied[1]:.2f},"
            f" ratio {switched[1] / copied[1]:.1f}",
            flush=True,
        )


def main() -> None:
    """Measure, print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows to this file")
    parser.add_argument("--executed", action="store_true", help="the cases on 8 and 16 devices alone")
    parser.add_argument("--speed", action="store_true", help="time a 110M model instead of counting")
    arguments = parser.parse_args()
    cases = [case for case in CASES if case.executed or not arguments.executed]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update(
        "jax_num_cpu_devices", 8 if arguments.speed else max(case.parallelism.devices for case in cases)
    )
    if arguments.speed:
        speed()
        return
    print(_HEADING)
    rows = []
    for case in cases:
        for engine in case.engines:
            rows.append(row_of(engine, case))
            print(_line(rows[-1]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
