"""`--plan --compile`: the programs of a plan, compiled from shapes on simulated devices, with the compiler's figures.

Knows which programs the roles run; what they compute is the engine's. No array is made.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Traced

from jaxflow.algorithms.losses import ValueLoss
from jaxflow.batch_algebra import longest_sequence_tokens
from jaxflow.config import Config
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.cache import empty_cache
from jaxflow.engine.compiled import ProgramMemory, memory_of
from jaxflow.engine.generate import PREFILL_TOKENS, Generator
from jaxflow.engine.layout_rules import Parallelism
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import untruncated
from jaxflow.engine.schedule import prompts_at_once, rounded
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import Layout, generation_layout, training_layout
from jaxflow.engine.slots import SLOT_BYTES
from jaxflow.engine.state import abstract_arrays
from jaxflow.engine.train import Trainer
from jaxflow.engine.transition import BUCKET_BYTES
from jaxflow.engine.transition_plan import leaves_of, plan_transition
from jaxflow.mapping import cost
from jaxflow.mapping.asked import decoders, loads_of, parallelism
from jaxflow.mapping.devices import DeviceGroup
from jaxflow.mapping.flop_count import count_flops
from jaxflow.mapping.gpu_target import gpu_topology
from jaxflow.mapping.load import RoleLoad
from jaxflow.mapping.memory import at_rest, gradient_bytes, rollout_weights
from jaxflow.mapping.plan import PlannedPool, setting_of
from jaxflow.mapping.program_table import Program
from jaxflow.mapping.stages import CallLayouts, Setting, cut
from jaxflow.models.transformer import LanguageModel, Model, ScalarModel, describe
from jaxflow.placement import holds_tokens_head, role_adapters
from jaxflow.types import Experience, UserError
from jaxflow.workers.rule import policy_loss
from jaxflow.workers.trained import optimizer_of


def provide_devices(groups: Sequence[DeviceGroup], target: str) -> Sequence[jax.Device]:
    """Return devices to compile for: simulated ones of the CPU, or descriptions of the real ones (`gpu`).

    Raises UserError where this process has touched too few simulated ones before, where the plugin that compiles
    for GPUs is not installed, or where GPUs of several kinds are asked for.
    """
    count = sum(group.devices for group in groups)
    if target == "gpu" and len(groups) > 1:
        raise UserError("--compile_for=gpu compiles for one kind of devices, and the cluster has several")
    try:  # devices that are there already stay; whether they are enough is asked below
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 1 if target == "gpu" else count)
    except RuntimeError:
        pass
    if target == "gpu":
        return gpu_topology(groups[0])
    if len(jax.devices("cpu")) < count:
        raise UserError(
            f"--compile needs {count} simulated devices, this process has {len(jax.devices('cpu'))}"
        )
    return jax.devices("cpu")


@dataclasses.dataclass(frozen=True)
class _Bench:
    """A pool's simulated mesh, and what its programs are compiled for."""

    config: Config
    pool: PlannedPool
    setting: Setting
    mesh: Mesh
    vocabulary_size: int

    @property
    def devices(self) -> int:
        return self.mesh.size

    def length(self) -> int:
        """Return the padded length of the longest sequence."""
        return ladder(longest_sequence_tokens(self.config), LENGTH_UNIT)


def compile_plan(
    config: Config,
    vocabulary_size: int,
    roles: Sequence[str],
    pools: Sequence[PlannedPool],
    available: Sequence[jax.Device],
) -> Iterator[Program]:
    """Yield the programs of each pool's roles, compiled; roles of one pool that share a program have one."""
    loads = {load.role: load for load in loads_of(config, vocabulary_size, roles)}
    for pool in pools:
        setting = setting_of(config, pool.name)
        devices = available[: pool.hosts * pool.devices_per_host]
        sizes = pool.mesh
        mesh = make_mesh(
            sizes.data,
            sizes.fsdp,
            sizes.tensor,
            sizes.generation_tensor,
            devices,
            pipe=sizes.pipe,
            generation_pipe=sizes.generation_pipe,
            expert=sizes.expert,
        )
        bench, seen = _Bench(config, pool, setting, mesh, vocabulary_size), set()
        for role in pool.roles:
            if role not in loads:
                continue
            load = loads[role]
            decoder = decoders(config, vocabulary_size)[role]
            kind = LanguageModel if holds_tokens_head(role) else ScalarModel
            model, layout = (
                describe(decoder, kind, role_adapters(config, role)),
                training_layout(mesh, decoder),
            )
            if load.generations > 0:
                if not load.borrows:
                    yield _switching(bench, load, model.base)
                yield from _generating(bench, load, model.base)
            apart = role in pool.generation_scoring
            program = (decoder, kind, load.adapters, apart)
            if load.scores > 0 and program not in seen:
                yield _scoring(bench, load, model, generation_layout(mesh, decoder) if apart else layout)
            seen.add(program)
            if load.trained:
                yield from _learning(bench, load, model, layout)


def _compiled(traced: Traced) -> tuple[ProgramMemory, float]:
    started = time.perf_counter()
    memory = memory_of(traced.lower().compile())
    return memory, time.perf_counter() - started


def _rows(bench: _Bench, layout: Parallelism, sequences: int, budget: int) -> int:
    return cut(sequences, layout, bench.length(), budget).rows * layout.replicas


def _batch(layout: Layout, rows: int, length: int) -> Experience:
    def array(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        names = ("batch", None)[: len(shape)]
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=layout.sharding(names))

    numbers = [array("float32", rows, length) for _ in range(5)]
    return Experience(
        array("int32", rows, length),
        array("int32", rows),
        array("bool", rows, length),
        *numbers,
        array("int32", rows),
    )


def _scoring(bench: _Bench, load: RoleLoad, model: Model, layout: Layout) -> Program:
    """Compile a scoring pass in the layout that it has. Of weights that move there for it, the copy is compared."""
    parallel = CallLayouts(
        load, parallelism(bench.pool.mesh), load.role in bench.pool.generation_scoring
    ).scoring
    budget = bench.config.rollout.score_microbatch_tokens_per_device
    rows = _rows(bench, parallel, bench.setting.workload.part_sequences, budget)
    scorer = Scorer(model, layout, budget, 1.0)
    params = abstract_arrays(model.shapes, layout.weights(model.names))
    tokens = _batch(layout, rows, bench.length()).tokens
    traced = scorer.trace(params, tokens)
    memory, seconds = _compiled(traced)
    rest = at_rest(load, parallel, bench.setting)
    per_device = rows * bench.length() // bench.devices
    return Program(
        bench.pool.name,
        load.role,
        "score",
        memory,
        rest.weights,
        memory.arguments - _size(tokens),
        "weights",
        count_flops(traced.jaxpr.jaxpr, 1) / bench.devices,
        cost.forward_flops(load.model, per_device, bench.length()),
        seconds,
    )


def _learning(bench: _Bench, load: RoleLoad, model: Model, layout: Layout) -> Iterator[Program]:
    config = bench.config
    if load.role == "actor":
        settings, loss = config.actor, policy_loss(config)
    else:
        rule = config.algorithm
        settings = config.critic
        limit = float(config.rollout.max_response_tokens)
        loss = ValueLoss(rule.value_clip, rule.loss_aggregation, limit, role=load.role)
    optimizer = optimizer_of(settings.optimizer, load.updates * config.run.total_steps)
    budget, balance = settings.microbatch_tokens_per_device, settings.router_aux_loss_coefficient
    trainer = Trainer(model, layout, optimizer, loss, 1.0, budget, balance)
    parallel = parallelism(bench.pool.mesh)
    rows = _rows(bench, parallel, load.minibatch_sequences, budget)
    batch = _batch(layout, rows, bench.length())
    accumulate, apply = trainer.trace(batch)
    rest = at_rest(load, parallel, bench.setting)
    gradients = gradient_bytes(load, parallel, bench.setting)
    given = _used_bytes(accumulate, jax.tree.leaves(batch))
    memory, seconds = _compiled(accumulate)
    tokens = rows * bench.length() // bench.devices
    passes = (3 if load.adapters == 0 else 2) + (1 if bench.setting.workload.remat else 0)
    yield Program(
        bench.pool.name,
        load.role,
        "accumulate",
        memory,
        rest.weights + gradients,
        memory.arguments - given,
        "weights + gradients",
        count_flops(accumulate.jaxpr.jaxpr, 1) / bench.devices,
        passes * cost.forward_flops(load.model, tokens, bench.length()),
        seconds,
    )
    memory, seconds = _compiled(apply)
    yield Program(
        bench.pool.name,
        load.role,
        "apply",
        memory,
        rest.weights + rest.optimizer + gradients,
        memory.arguments,
        "weights + optimizer + gradients",
        0.0,
        0.0,
        seconds,
    )


def _switching(bench: _Bench, load: RoleLoad, model: Model) -> Program:
    config, parallel = bench.config, parallelism(bench.pool.mesh)
    before, layout = training_layout(bench.mesh, model.config), generation_layout(bench.mesh, model.config)
    weights = rollout_weights(load, parallel, bench.setting)
    started = time.perf_counter()
    leaves = leaves_of(
        jax.tree.leaves(model.shapes),
        jax.tree.leaves(before.weights(model.names)),
        jax.tree.leaves(layout.weights(model.names)),
    )
    moved = plan_transition(leaves, config.rollout.dtype, False, BUCKET_BYTES).cost
    held = max(moved.held_bytes.values())
    rest = at_rest(load, parallel, bench.setting)
    figures = ProgramMemory(
        round(rest.weights), held, max(0, moved.peak_bytes - round(rest.weights) - held), 0
    )
    taken = time.perf_counter() - started
    return Program(
        bench.pool.name, load.role, "transition", figures, weights, held, "rollout weights", 0.0, 0.0, taken
    )


def _generating(bench: _Bench, load: RoleLoad, model: Model) -> Iterator[Program]:
    config, parallel = bench.config, parallelism(bench.pool.mesh)
    layout = generation_layout(bench.mesh, model.config)
    weights = rollout_weights(load, parallel, bench.setting)
    width = ladder(config.data.max_prompt_tokens, LENGTH_UNIT)
    rows = bench.pool.rows * layout.replicas
    total = rounded(width + config.rollout.max_response_tokens)
    cache = jax.jit(lambda: empty_cache(model.config, rows, total, config.rollout.dtype, layout)).trace()
    memory, seconds = _compiled(cache)
    cached, name = memory.results, (bench.pool.name, load.role)
    per_position = cost.cache_bytes(
        load.model, bench.setting.engine.rollout_bytes, parallel.generation_tensor, parallel.generation_pipe
    )
    formula = bench.pool.rows * total * per_position
    yield Program(*name, "cache", memory, formula, cached, "key/value cache", 0.0, 0.0, seconds)

    programs = Generator(model, layout, config.rollout.dtype, bench.pool.rows).programs
    samples = config.rollout.samples_per_prompt
    prompts = prompts_at_once(-(-bench.pool.rows // samples), width, PREFILL_TOKENS)
    prefill = programs.trace_prefill(prompts * layout.replicas, width)
    memory, seconds = _compiled(prefill)
    tokens = prompts * layout.replicas * width / bench.devices
    products = load.model.layers * load.model.layer_products
    flops = 2.0 * tokens * products + cost.attention_flops(load.model, tokens, width)
    yield Program(
        *name,
        "prefill",
        memory,
        prompts * width * per_position,
        memory.results,
        "prepared prompts",
        count_flops(prefill.jaxpr.jaxpr, 1) / bench.devices,
        flops,
        seconds,
    )

    sampling = dataclasses.replace(
        untruncated(config.rollout.max_response_tokens), temperature=config.rollout.temperature
    )
    decode = programs.trace_decode(rows, total, sampling)
    memory, seconds = _compiled(decode)
    tokens = rows * programs.chunk_steps / bench.devices
    flops = 2.0 * tokens * (products + load.model.head_products)
    yield Program(
        *name,
        "decode",
        memory,
        weights,
        memory.arguments - cached - bench.pool.rows * SLOT_BYTES,
        "rollout weights",
        count_flops(decode.jaxpr.jaxpr, programs.chunk_steps) / bench.devices,
        flops + cost.attention_flops(load.model, tokens, total),
        seconds,
    )


def _used_bytes(traced: Traced, batch: Sequence[jax.ShapeDtypeStruct]) -> int:
    """Return the bytes of the batch and its two counts that a program reads: jit drops what it does not."""
    jaxpr = traced.jaxpr.jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    given = jaxpr.invars[-2 - len(batch) : -2]
    sizes = [_size(leaf) for leaf, variable in zip(batch, given, strict=True) if id(variable) in read]
    return sum(sizes) + 4 * sum(id(count) in read for count in jaxpr.invars[-2:])


def _size(array: jax.ShapeDtypeStruct) -> int:
    """Return the bytes of one device's shard."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
