"""Seconds of one role's calls on simulated devices: the terms of `simulated` put together, as `stages` does for real
ones.

Knows roles by their loads, and that this engine runs them: how many programs it starts for a call. Knows no placement.
"""

from __future__ import annotations

import math

from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.generate import CHUNK_STEPS
from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping import cost, simulated
from jaxflow.mapping.cost import Seconds, Span, span
from jaxflow.mapping.load import RoleLoad
from jaxflow.mapping.stages import Setting, cut, mean_positions, prefills, replica_rows

_PROGRAMS_OF_AN_UPDATE = 2  # gradients of zeros, the optimizer; beside one for each micro-batch
_PROGRAMS_OF_A_GENERATION = 3  # layers cut out, room for prompts, slots; beside prefills, starts and chunks


def _near(layout: Parallelism, setting: Setting) -> int:
    """Return how many neighbours a collective reaches without a socket.

    All of a single process. Of several, none: XLA's CPU collectives then go through sockets even inside a process.
    """
    return setting.devices_per_host if layout.devices <= setting.devices_per_host else 1


def _spans(layout: Parallelism, setting: Setting) -> tuple[Span, Span]:
    """Return the spans of tensor ranks and of data-parallel replicas."""
    near = _near(layout, setting)
    inside = layout.tensor * layout.pipe * layout.fsdp * layout.expert
    return span(layout.tensor, 1, near), span(layout.data, inside, near)


def _processes(layout: Parallelism, setting: Setting) -> int:
    return max(1, layout.devices // setting.devices_per_host)


def _agreed(layout: Parallelism, setting: Setting) -> Seconds:
    """Return what a call takes in which several processes first tell each other of their rows."""
    if _processes(layout, setting) == 1:
        return Seconds()
    return simulated.agreement(span(layout.devices, 1, _near(layout, setting)), setting.device)


def _gathered(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return the time of making weights whole over the fsdp axis, once: beside nothing, for nothing hides it."""
    where = span(layout.fsdp, layout.tensor * layout.pipe, _near(layout, setting))
    ways = layout.tensor * layout.pipe
    size = setting.engine.weight_bytes * (load.model.share(ways, layout.expert) - load.model.vectors)
    return cost.all_gather(size, where, setting.device)


def score_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return one forward pass over the step's sequences, part by part, at the padded length that they run at."""
    workload, device = setting.workload, setting.device
    length = ladder(workload.length, LENGTH_UNIT)
    micro = cut(workload.part_sequences, layout, length, workload.score_tokens)
    tokens, (where, _) = micro.rows * length, _spans(layout, setting)
    layer = simulated.forward_layer(load.model, tokens, length, layout.tensor, where, device)
    work = layer.times(load.model.layers / layout.pipe)
    work += simulated.head(load.model, tokens, layout.tensor * layout.pipe, where, device)
    work += _gathered(load, layout, setting)
    work += Seconds(host=device.dispatch_seconds)
    passes = cost.pipelined(work, micro.microbatches, layout.pipe).times(1 + load.score_references)
    return (passes + _agreed(layout, setting)).times(workload.parts)


def train_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return all updates of a step: micro-batches with their sums of gradients, and the optimizer."""
    workload, engine, device = setting.workload, setting.engine, setting.device
    length = ladder(workload.length, LENGTH_UNIT)
    micro = cut(load.minibatch_sequences, layout, length, load.microbatch_tokens)
    tokens, (where, replicas) = micro.rows * length, _spans(layout, setting)
    ways = layout.tensor * layout.pipe * layout.fsdp
    forward = simulated.forward_layer(load.model, tokens, length, layout.tensor, where, device)
    backward = simulated.backward_layer(
        load.model, tokens, length, layout.tensor, where, workload.remat, device
    )
    work = (forward + backward).times(load.model.layers / layout.pipe)
    # Logits are computed again in the backward pass, and then differentiated.
    head = simulated.head(load.model, tokens, layout.tensor * layout.pipe, where, device)
    work += simulated.learning_head(load.model, tokens, layout.tensor * layout.pipe, where, device)
    work += _gathered(load, layout, setting).times(3.0)
    compared = forward.times(load.model.layers / layout.pipe) + _gathered(load, layout, setting)
    work += (compared + head.times(2.0)).times(load.learn_references)
    learning = load.learning_share(ways, layout.expert)
    gradients = engine.gradient_bytes * learning
    work += simulated.gradient_sums(gradients, load.model.layers / layout.pipe, replicas, device)
    work += Seconds(host=device.dispatch_seconds)
    update = (
        cost.pipelined(work, micro.microbatches, layout.pipe)
        + cost.optimizer_update(learning, device)
        + simulated.norms(span(ways, 1, _near(layout, setting)), device)
        + Seconds(host=_PROGRAMS_OF_AN_UPDATE * device.dispatch_seconds)
    )
    if load.counts_choices:
        counted = compared + Seconds(host=device.dispatch_seconds)
        update += cost.pipelined(counted, micro.microbatches, layout.pipe)
    # Lengths are told once; whoever generates also tells how old its rows are.
    told = _agreed(layout, setting).times(2.0 if load.generations > 0 else 1.0)
    return update.times(load.updates) + told


def generate_seconds(load: RoleLoad, layout: Parallelism, setting: Setting, rows_at_once: int) -> Seconds:
    """Return all responses of a step, part by part: prompts prefilled once each, then a decode step for every token.

    Every response is as long as it may be, so all slots are taken until a round of rows is done. A chunk that is
    read while the next one runs costs no more than its start; before the first and behind the last one the host
    works alone, on each row of its process. Stages of generation take a p_g-th of the rows at a time
    (`stages.generate_seconds`).
    """
    workload, device = setting.workload, setting.device
    rows, tensor = replica_rows(layout, setting), layout.generation_tensor
    pipe, width_of_rows = layout.generation_pipe, load.model.decoder.width
    rounds = cost.rounds_of(rows, rows_at_once)
    running = math.ceil(rows / rounds / pipe)
    near = _near(layout, setting)
    where, everyone = span(tensor, layout.tensor // tensor, near), span(layout.devices, 1, near)
    apart = span(pipe, layout.tensor * layout.pipe // pipe, near)
    width = ladder(workload.prompt_tokens, LENGTH_UNIT)
    passes, prompts = prefills(rows, workload)
    prompts, ticks = math.ceil(prompts / pipe), 2 * pipe - 1
    prefill = simulated.forward_layer(load.model, prompts * width, width, tensor, where, device)
    handed = cost.stage_hops(prompts * width * width_of_rows, 4, apart, device)
    prefill = prefill.times(load.model.layers * ticks / pipe) + handed.times(ticks)
    positions = mean_positions(workload, rounds)
    step = simulated.decode_layer(load.model, running, positions, tensor, where, device)
    step = step.times(load.model.layers)
    drawn = simulated.draw(load.model, running, tensor, where, everyone, device)
    step += (drawn + cost.stage_hops(running * width_of_rows, 4, apart, device)).times(pipe)
    chunks = math.ceil(workload.response_tokens / CHUNK_STEPS)
    programs = _PROGRAMS_OF_A_GENERATION + 2 * passes + rounds * (1 + chunks)
    whole = prefill.times(passes) + step.times(workload.response_tokens * rounds)
    whole += simulated.chunk_read(everyone, device).times(rounds * chunks)
    here = workload.part_sequences / _processes(layout, setting)
    host = device.generation_seconds + here * device.generation_row_seconds
    whole += Seconds(host=programs * device.dispatch_seconds + host) + _agreed(layout, setting)
    return whole.times(workload.parts * load.generations)


def transition_seconds(load: RoleLoad, layout: Parallelism, setting: Setting) -> Seconds:
    """Return the switch of the policy's weights to the generation layout, and the start of its program."""
    near = _near(layout, setting)
    moved = cost.transition(
        setting.engine.rollout_bytes * load.model.parameters,
        math.inf if load.borrows else layout.tensor * layout.pipe * layout.fsdp,
        layout.generation_tensor * layout.generation_pipe,
        near,
        setting.device,
    )
    started = Seconds(host=setting.device.dispatch_seconds)
    return simulated.switched_arrays(moved, layout.devices <= near) + started
