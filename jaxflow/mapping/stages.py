"""Seconds of one role's calls in one layout: the terms of `cost` put together.

Knows roles by their loads. Knows no placement: what colocated roles leave free comes in as a number of rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from jaxflow.engine.generate import CHUNK_STEPS, PREFILL_TOKENS
from jaxflow.engine.layout_rules import Parallelism
from jaxflow.engine.schedule import capacity, prompts_at_once, rounded
from jaxflow.mapping import cost
from jaxflow.mapping.cost import Seconds, Span, span
from jaxflow.mapping.devices import DeviceProfile
from jaxflow.mapping.engine_profile import EngineProfile
from jaxflow.mapping.load import RoleLoad, Workload


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What the calls of all roles have in common on one pool. Compared by identity: it is a key of large caches."""

    workload: Workload
    engine: EngineProfile
    device: DeviceProfile
    devices_per_host: int


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a replica's rows become micro-batches."""

    rows: int  # of one micro-batch
    microbatches: int


def cut(sequences: int, layout: Parallelism, length: int, token_budget: int) -> Cut:
    """Cut a replica's rows into micro-batches within the budget, into as many as pipeline stages where it can."""
    rows = math.ceil(sequences / layout.replicas)
    most = max(1, min(token_budget // length, math.ceil(rows / layout.pipe)))
    microbatches = math.ceil(rows / most)
    return Cut(math.ceil(rows / microbatches), microbatches)


def _tensor_span(ways: int, stride: int, setting: Setting) -> Span:
    return span(ways, stride, setting.devices_per_host)


def _hop(numbers: float, layout: Parallelism, setting: Setting) -> Seconds:
    """Return the time of handing activations to the next pipeline stage."""
    if layout.pipe == 1:
        return Seconds()
    device = setting.device
    inside = span(layout.pipe, layout.tensor, setting.devices_per_host).inside
    speed = (
        device.link_bandwidth * device.link_efficiency
        if inside
        else device.network_bandwidth * device.network_efficiency
    )
    # Every tensor rank of a stage sends its peer a part.
    size = setting.engine.compute_bytes * numbers / layout.tensor
    return Seconds(links=size / speed, latency=device.link_seconds if inside else device.network_seconds)


def _stage_span(layout: Parallelism, setting: Setting) -> Span:
    """Return where the stages of generation lie: between two of them are the ranks that were stages of training."""
    apart = layout.pipe // layout.generation_pipe * layout.tensor
    return span(layout.generation_pipe, apart, setting.devices_per_host)


def _expert_span(layout: Parallelism, setting: Setting) -> Span:
    return span(layout.expert, layout.tensor * layout.pipe, setting.devices_per_host)


def score_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return one forward pass over the step's sequences, part by part."""
    workload, engine, device = setting.workload, setting.engine, setting.device
    micro = cut(workload.part_sequences, layout, workload.length, workload.score_tokens)
    tokens = micro.rows * workload.length
    where = _tensor_span(layout.tensor, 1, setting)
    work = cost.whole_pass(
        load.model,
        tokens,
        workload.length / 2,
        engine.compute_bytes,
        layout.tensor,
        where,
        device,
        _expert_span(layout, setting),
    ).times(1 / layout.pipe)
    work += cost.head_pass(load.model, tokens, layout.tensor * layout.pipe, device)
    work += _hop(tokens * load.model.decoder.width, layout, setting)
    part = _passes(work, _gather(load, layout, setting), micro, layout)
    return part.times((1 + load.score_references) * workload.parts)


def _passes(work: Seconds, moving: Seconds, micro: Cut, layout: Parallelism) -> Seconds:
    """Return forward passes over all micro-batches; a pipeline's weights are gathered once, before its ticks."""
    if layout.pipe > 1:
        return cost.pipelined(work, micro.microbatches, layout.pipe) + moving
    return cost.overlapped(work, moving).times(micro.microbatches)


def _gather(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return the time of making weights whole over the fsdp axis, once."""
    ways = layout.tensor * layout.pipe
    where = span(layout.fsdp, ways * layout.expert, setting.devices_per_host)
    size = setting.engine.compute_bytes * (load.model.share(ways, layout.expert) - load.model.vectors)
    return cost.all_gather(size, where, setting.device)


def train_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return all updates of a step: micro-batches, what replicas exchange, and the optimizer."""
    workload, engine, device = setting.workload, setting.engine, setting.device
    micro = cut(load.minibatch_sequences, layout, workload.length, load.microbatch_tokens)
    tokens = micro.rows * workload.length
    where = _tensor_span(layout.tensor, 1, setting)
    forward = cost.whole_pass(
        load.model,
        tokens,
        workload.length / 2,
        engine.compute_bytes,
        layout.tensor,
        where,
        device,
        _expert_span(layout, setting),
    ).times(1 / layout.pipe)
    # The backward pass is two forward ones in arithmetic and one in exchanges; remat adds one of both.
    again = 1 if workload.remat else 0
    # Weights that do not learn need no gradients of their own: half the backward pass.
    backward = 2 if load.adapters == 0 else 1
    work = dataclasses.replace(forward.times(1 + backward + again), links=forward.links * (2 + again))
    head = cost.head_pass(load.model, tokens, layout.tensor * layout.pipe, device)
    hop, gather = _hop(tokens * load.model.decoder.width, layout, setting), _gather(load, layout, setting)
    # Logits, a reference's too, are computed again in the backward pass.
    work += head.times(2 + backward) + hop.times(2)
    work += (forward + head.times(2) + hop).times(load.learn_references)
    moving = gather.times(2 + load.learn_references)
    whole = layout.tensor * layout.pipe
    sharded = span(layout.fsdp, whole * layout.expert, setting.devices_per_host)
    gradient = engine.gradient_bytes * load.learning_share(whole, layout.expert)
    moving += cost.all_gather(gradient, sharded, device)
    exchange = _exchange(load, layout, setting)
    if layout.pipe > 1:  # weights are gathered before a pipeline's ticks, gradients summed behind them
        stage, exchange = work, exchange + moving
    elif engine.reduces_each_microbatch:
        stage, exchange = cost.overlapped(work, moving) + exchange, Seconds()
    else:
        stage = cost.overlapped(work, moving)
    ways = layout.tensor * layout.pipe * layout.fsdp
    ways *= layout.data if engine.optimizer_over_data else 1
    update = (
        cost.pipelined(stage, micro.microbatches, layout.pipe)
        + exchange
        + cost.optimizer_update(load.learning_share(ways, layout.expert), device)
    )
    if load.counts_choices:
        update += _passes(forward + hop, gather, micro, layout)
    return update.times(load.updates)


def _exchange(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return the time in which data-parallel replicas sum their gradients (and share out the new weights).

    Ranks that cut experts have different ones of those, and sum the gradients of all else.
    """
    engine, device = setting.engine, setting.device
    ways = layout.tensor * layout.pipe * layout.fsdp
    where = span(layout.data, ways * layout.expert, setting.devices_per_host)
    numbers = load.learning_share(ways, layout.expert)
    in_experts = load.learning_experts / (ways * layout.expert)
    alike = cost.all_reduce(
        engine.gradient_bytes * (numbers - in_experts), _expert_span(layout, setting), device
    )
    if engine.optimizer_over_data:
        scattered = cost.all_gather(engine.gradient_bytes * numbers, where, device)
        return alike + scattered + cost.all_gather(engine.weight_bytes * numbers, where, device)
    return alike + cost.all_reduce(engine.gradient_bytes * numbers, where, device)


def replica_rows(layout: Parallelism, setting: Setting) -> int:
    """Return the rows that each generation replica makes in a call, d_g · d · f · expert of them sharing a part's."""
    return math.ceil(setting.workload.part_sequences / (layout.replicas * layout.micro_data))


def host_share(layout: Parallelism, setting: Setting) -> float:
    """Return the share of a model that a host's devices generate with: the stages that it has of p_g, a stage's
    neighbours in training being of the same one in generation."""
    stages_here = setting.devices_per_host / (layout.tensor * layout.pipe)
    return min(1.0, max(stages_here, 1 / layout.generation_pipe))


def slots_of(rows: int, layout: Parallelism, setting: Setting) -> int:
    """Return the slots that hold so many rows of a replica: a multiple of the stages, whose groups are equal."""
    unit = layout.generation_pipe if setting.engine.slots else 1
    return -(-rows // unit) * unit


def scoring_switch_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return the time in which a trained role's weights move to the generation layout for a pass."""
    size = setting.engine.weight_bytes * load.model.share(1, layout.expert)
    return cost.transition(
        size,
        layout.tensor * layout.pipe * layout.fsdp,
        layout.generation_tensor * layout.generation_pipe,
        setting.devices_per_host,
        setting.device,
        host_share(layout, setting),
    )


@dataclasses.dataclass(frozen=True)
class CallLayouts:
    """In which layout a role does what, on a pool of this one."""

    load: RoleLoad
    pool: Parallelism
    generation_scoring: bool  # frozen weights are held in the generation layout; others move there for a pass

    @property
    def scoring(self) -> Parallelism:
        """Return the layout of a scoring pass."""
        return self.pool.generating if self.generation_scoring else self.pool

    @property
    def resting(self) -> Parallelism:
        """Return the layout in which the weights are kept."""
        return self.pool if self.load.trained else self.scoring

    @property
    def moves(self) -> bool:
        """Return whether weights move for a scoring pass."""
        return self.generation_scoring and self.load.trained


def may_score_generating(load: RoleLoad, layout: Parallelism, setting: Setting) -> bool:
    """Return whether a role can score in the generation layout, and that differs from training's."""
    if load.stays or load.scores == 0 or load.borrows:
        return False
    ways = layout.tensor * layout.pipe
    on_one_host = layout.devices <= setting.devices_per_host
    rows_stay = on_one_host or (setting.devices_per_host % ways == 0 and not load.validates)
    replicas = layout.generating.replicas
    divides = setting.workload.sequences % (setting.workload.parts * replicas) == 0
    differs = layout.generation_tensor * layout.generation_pipe < ways * layout.fsdp
    return differs and rows_stay and divides


def prefills(rows: int, workload: Workload) -> tuple[int, int]:
    """Return in how many passes the prompts of a replica's rows are prepared, and how many prompts each pass has."""
    prompts = math.ceil(rows / workload.samples_per_prompt)
    at_once = prompts_at_once(prompts, workload.prompt_tokens, PREFILL_TOKENS)
    return math.ceil(prompts / at_once), at_once


@functools.cache
def mean_positions(workload: Workload, rounds: int) -> float:
    """Return how many positions of its cache a decode step reads, on average over rounds.

    The cache grows with the first round's sequences, chunk by chunk, and stays as long as it then is.
    """
    longest, read = workload.length, 0
    for drawn in range(0, workload.response_tokens, CHUNK_STEPS):
        reached = min(workload.prompt_tokens + drawn + CHUNK_STEPS, longest)
        read += capacity(reached, longest) * min(CHUNK_STEPS, workload.response_tokens - drawn)
    first = read / workload.response_tokens
    return (first + (rounds - 1) * rounded(longest)) / rounds


def generate_seconds(load: RoleLoad, layout: Parallelism, setting: Setting, rows_at_once: int) -> Seconds:
    """Return all responses of a step, `rows_at_once` of each replica running at a time.

    All are as long as they may be, so those that start together end together, and rows pass in rounds.
    """
    workload, engine, device = setting.workload, setting.engine, setting.device
    rows = replica_rows(layout, setting)
    if engine.slots:
        rounds = float(cost.rounds_of(rows, rows_at_once))
        running = slots_of(math.ceil(rows / rounds), layout, setting)
        context = mean_positions(workload, int(rounds))
        passes, prompts = prefills(rows, workload)
    else:
        running, rounds = min(rows, rows_at_once), max(1.0, rows / rows_at_once)
        context = workload.prompt_tokens + workload.response_tokens / 2
        passes, prompts = rounds, running
    tensor, pipe = layout.generation_tensor, layout.generation_pipe
    where = _tensor_span(tensor, layout.tensor // tensor, setting)
    experts = _expert_span(layout, setting)
    # p groups of the prompts pass the stages, and what is computed at 2p − 1 ticks is a p-th of a group's layers.
    group = slots_of(prompts, layout, setting) / pipe * workload.prompt_tokens
    ticks = 2 * pipe - 1
    prefill = cost.whole_pass(
        load.model,
        group,
        workload.prompt_tokens / 2,
        engine.compute_bytes,
        tensor,
        where,
        device,
        experts,
    ).times(ticks / pipe)
    step = cost.decode_step(
        load.model, running, context, engine.rollout_bytes, tensor, pipe, where, device, experts
    )
    stages, width = _stage_span(layout, setting), load.model.decoder.width
    prefill += cost.stage_hops(group * width, engine.compute_bytes, stages, device).times(ticks)
    step += cost.stage_hops(running / pipe * width, engine.compute_bytes, stages, device).times(pipe)
    step += Seconds(host=engine.step_seconds + engine.row_seconds * running)
    made = prefill.times(passes) + step.times(rounds * workload.response_tokens)
    return made.times(load.generations * workload.parts)


def transition_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return the switch of the policy's weights to the generation layout: from the training one, or from afar."""
    in_experts = load.model.layers * load.model.layer_experts
    sizes = [load.model.parameters - in_experts]
    if in_experts > 0:
        sizes.append(in_experts / layout.expert)
    taken = Seconds()
    for size in sizes:
        taken += cost.transition(
            setting.engine.rollout_bytes * size,
            math.inf if load.borrows else layout.tensor * layout.pipe * layout.fsdp,
            layout.generation_tensor * layout.generation_pipe,
            setting.devices_per_host,
            setting.device,
            host_share(layout, setting),
        )
    return taken
