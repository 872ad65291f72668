"""The mapping search as its definition: everything is tried, nothing is bounded, cached or pruned."""

import itertools
import math

from jaxflow.engine.layout_rules import Parallelism, layout_problems
from jaxflow.mapping import memory, stages


def splits(devices):
    """Yield (d, f, t, p, t_g, p_g) with d·f·t·p = devices."""
    sizes = range(1, devices + 1)
    for d, f, t, p in itertools.product(sizes, repeat=4):
        if d * f * t * p == devices:
            for t_g, p_g in itertools.product(sizes, sizes):
                if t % t_g == 0 and p % p_g == 0:
                    yield Parallelism(
                        data=d, fsdp=f, tensor=t, generation_tensor=t_g, pipe=p, generation_pipe=p_g
                    )


def allowed(load, layout, devices, setting):
    """Return whether the engine can hold the model so and split its rows so."""
    model, rows = load.model.decoder, load.minibatch_sequences if load.trained else setting.workload.sequences
    if layout_problems(layout, devices, model) or (
        model.kv_heads % layout.tensor != 0 and layout.tensor % model.kv_heads != 0
    ):
        return False
    if not setting.engine.generation_pipes and layout.generation_pipe > 1:
        return False
    if layout.tensor > setting.devices_per_host:
        return False
    pipes = layout.pipe if setting.engine.generation_pipes else 1
    if load.generations == 0 and (layout.generation_tensor, layout.generation_pipe) != (layout.tensor, pipes):
        return False
    replicas = layout.data * layout.fsdp
    if not setting.engine.rows_divide:
        return replicas <= rows
    generating = replicas * layout.micro_data
    fits = load.generations == 0 or setting.workload.sequences % generating == 0
    return rows % replicas == 0 and fits


def stage_seconds(loads, chosen, setting, offload=False):
    """Return a set's three stages in these layouts; None where a phase does not fit."""
    limit = setting.device.memory_bytes * setting.engine.memory_share
    resting = [memory.at_rest(load, one, setting) for load, one in zip(loads, chosen, strict=True)]
    waiting = [
        0.0 if not offload else kept.optimizer if load.trained else kept.weights
        for load, kept in zip(loads, resting, strict=True)
    ]
    rest = sum(kept.weights + kept.optimizer + kept.gradients for kept in resting) - sum(waiting)
    call = setting.engine.call_seconds
    generation = preparation = training = held = 0.0
    for load, one in zip(loads, chosen, strict=True):
        if load.generations > 0:
            replicas = (
                one.data * one.fsdp * one.pipe * one.tensor // one.generation_pipe // one.generation_tensor
            )
            rows = math.ceil(setting.workload.sequences / replicas)
            fitting = [
                count
                for count in range(1, rows + 1)
                if rest + memory.generation(load, one, setting, count).total <= limit
            ]
            if not fitting:
                return None
            generation += min(
                stages.generate_seconds(load, one, setting, count).total for count in (max(fitting),)
            )
            generation += stages.transition_seconds(load, one, setting).total + call
            held = 0.0 if setting.engine.rollout_offloaded else memory.rollout_weights(load, one, setting)
    for load, one, away in zip(loads, chosen, waiting, strict=True):
        if load.scores > 0:
            preparation += away / setting.device.host_bandwidth * (not load.trained)
            preparation += load.scores * (stages.score_seconds(load, one, setting).total + call)
            fetched = 0.0 if load.trained else away
            if rest + held + fetched + memory.scoring(load, one, setting).total > limit:
                return None
        if load.trained:
            training += 2 * away / setting.device.host_bandwidth
            training += stages.train_seconds(load, one, setting).total + call
            beside = 0.0 if load.generations > 0 else held
            if rest + away + beside + memory.training(load, one, setting).total > limit:
                return None
    return generation, preparation, training


def of_set(loads, devices, setting, may_offload):
    """Yield the stages of a set in every choice of layouts."""
    tables = [[s for s in splits(devices) if allowed(load, s, devices, setting)] for load in loads]
    for chosen in itertools.product(*tables):
        meshes = {(one.data, one.fsdp, one.tensor, one.pipe) for one in chosen}
        if setting.engine.one_mesh_per_pool and len(meshes) > 1:
            continue
        for offload in (False, True) if may_offload else (False,):
            stages_of_it = stage_seconds(loads, chosen, setting, offload)
            if stages_of_it is not None:
                yield stages_of_it


def best_seconds(problem):
    """Return the fastest mapping's seconds for each partition that fits somewhere, by partition."""
    count = len(problem.loads)
    settings = [problem.setting(i) for i in range(len(problem.cluster))]
    memo = {}

    def options(block, group, size):
        key = (block, group, size)
        if key not in memo:
            memo[key] = list(
                of_set([problem.loads[i] for i in block], size, settings[group], problem.freedom.offload)
            )
        return memo[key]

    found = {}
    for labels in itertools.product(range(count), repeat=count):
        blocks = tuple(sorted(tuple(i for i in range(count) if labels[i] == b) for b in set(labels)))
        if blocks in found:
            continue
        found[blocks] = math.inf
        for groups in itertools.product(range(len(settings)), repeat=len(blocks)):
            sizes = [range(1, problem.cluster[g].devices + 1) for g in groups]
            for allocation in itertools.product(*sizes):
                used = [sum(n for n, g in zip(allocation, groups, strict=True) if g == one) for one in groups]
                if any(n > problem.cluster[g].devices for n, g in zip(used, groups, strict=True)):
                    continue
                tables = [options(*of) for of in zip(blocks, groups, allocation, strict=True)]
                for vectors in itertools.product(*tables):
                    total = sum(max(stage) for stage in zip(*vectors, strict=True))
                    found[blocks] = min(found[blocks], total)
    return {blocks: seconds for blocks, seconds in found.items() if seconds < math.inf}
