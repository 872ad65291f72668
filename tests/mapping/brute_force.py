"""The mapping search as its definition: everything is tried, nothing is bounded, cached or pruned."""

import itertools
import math

from jaxflow.engine.layout_rules import Parallelism, layout_problems
from jaxflow.mapping import call_seconds, memory, stages


def splits(devices):
    """Yield (d, f, x, t, p, t_g, p_g) with d·f·x·t·p = devices."""
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    for d, f, x, t, p in itertools.product(sizes, repeat=5):
        if d * f * x * t * p == devices:
            for t_g, p_g in itertools.product(sizes, sizes):
                if t % t_g == 0 and p % p_g == 0:
                    yield Parallelism(d, f, t, t_g, p, p_g, x)


def allowed(load, layout, devices, setting, uses_generation):
    """Return whether the engine can hold the model so and split its rows so, in generation's sizes too where it uses
    them."""
    model, workload = load.model.decoder, setting.workload
    if layout_problems(layout, devices, model) or (
        model.kv_heads % layout.tensor != 0 and layout.tensor % model.kv_heads != 0
    ):
        return False
    if not setting.engine.generation_pipes and layout.generation_pipe > 1:
        return False
    if layout.tensor > setting.devices_per_host:
        return False
    pipes = layout.pipe if setting.engine.generation_pipes else 1
    own_sizes = (layout.generation_tensor, layout.generation_pipe) == (layout.tensor, pipes)
    if not setting.engine.one_mesh_per_pool and load.generations == 0 and not own_sizes:
        return False
    replicas = layout.data * layout.fsdp * layout.expert
    if not setting.engine.rows_divide:
        rows = load.minibatch_sequences if load.trained else workload.sequences / workload.parts
        return replicas <= rows
    generating = replicas * layout.micro_data if uses_generation else 1
    return all(
        rows % ways == 0
        for rows, ways in (
            (workload.sequences, workload.parts * generating),
            (workload.sequences, workload.parts * replicas),
            (load.minibatch_sequences, replicas),
        )
    )


def stage_seconds(loads, chosen, setting, apart, offload=False):
    """Return what a set takes in these layouts: the switch, generation, each role's scores in their order, and
    training; None where a phase does not fit. Of `apart` each role scores in the layout's generation sizes."""
    limit = setting.device.memory_bytes * setting.engine.memory_share
    scoring = [one.generating if load in apart else one for load, one in zip(loads, chosen, strict=True)]
    resting = [
        memory.at_rest(load, one if load.trained else scored, setting)
        for load, one, scored in zip(loads, chosen, scoring, strict=True)
    ]
    waiting = [
        0.0 if not offload else kept.optimizer if load.trained else kept.weights
        for load, kept in zip(loads, resting, strict=True)
    ]
    rest = sum(kept.weights + kept.optimizer + kept.gradients for kept in resting) - sum(waiting)
    parts = setting.workload.parts
    switch = generation = training = held = 0.0
    prepared = []
    for load, one in zip(loads, chosen, strict=True):
        call = call_seconds.controller_seconds(one, setting).total
        if load.generations > 0:
            replicas = one.devices // one.generation_pipe // one.generation_tensor
            rows = math.ceil(setting.workload.sequences / parts / replicas)
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
            generation += parts * call
            switch += stages.transition_seconds(load, one, setting).total
            held = 0.0 if setting.engine.rollout_offloaded else memory.rollout_weights(load, one, setting)
    for load, one, scored, away in zip(loads, chosen, scoring, waiting, strict=True):
        call = call_seconds.controller_seconds(one, setting).total
        if load.scores > 0:
            moved = away / setting.device.host_bandwidth * (not load.trained)
            once = stages.score_seconds(load, scored, setting).total + parts * call
            fetched = 0.0 if load.trained else away
            if load in apart and load.trained:
                once += parts * stages.scoring_switch_seconds(load, one, setting).total
                fetched += memory.scoring_copy(load, one, setting)
            prepared.append((load.turn, moved + load.scores * once))
            if rest + held + fetched + memory.scoring(load, scored, setting).total > limit:
                return None
        if load.trained:
            training += 2 * away / setting.device.host_bandwidth
            training += stages.train_seconds(load, one, setting).total + call
            beside = 0.0 if load.generations > 0 else held
            if rest + away + beside + memory.training(load, one, setting).total > limit:
                return None
    return switch, generation, [seconds for _, seconds in sorted(prepared)], training


def step_seconds(vectors, parts):
    """Return how long sets that work at the same time take, part by part: the role that another pool calls
    first scores one beside the next, the roles after it when it is done."""
    arrivals = []
    for switch, generation, _, _ in vectors:
        if generation > 0.0:
            arrivals = [switch + generation * (part + 1) / parts for part in range(parts)]
    ended = [arrivals[-1]]
    for _, generation, prepared, _ in vectors:
        free = 0.0
        for seconds in prepared:
            for arrival in arrivals:
                free = max(free, arrivals[-1] if generation > 0.0 else arrival) + seconds / parts
        ended.append(free)
    return max(ended) + max(training for *_, training in vectors)


def of_set(loads, devices, setting, may_offload):
    """Yield the stages of a set in every choice of layouts."""
    for chosen, apart in choices(loads, devices, setting):
        for offload in (False, True) if may_offload else (False,):
            stages_of_it = stage_seconds(loads, chosen, setting, apart, offload)
            if stages_of_it is not None:
                yield stages_of_it


def choices(loads, devices, setting):
    """Yield every layout of each role, and which of them score in generation's sizes: of one mesh, or of their own."""
    if not setting.engine.one_mesh_per_pool:
        tables = [
            [s for s in splits(devices) if allowed(load, s, devices, setting, load.generations > 0)]
            for load in loads
        ]
        yield from ((chosen, ()) for chosen in itertools.product(*tables))
        return
    for split in splits(devices):
        for count in range(len(loads) + 1):
            for apart in itertools.combinations(loads, count):
                uses = [load.generations > 0 or load in apart for load in loads]
                scores = all(load.scores > 0 for load in apart)
                if scores and all(
                    allowed(load, split, devices, setting, used)
                    for load, used in zip(loads, uses, strict=True)
                ):
                    yield (split,) * len(loads), apart


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
                    seconds = step_seconds(vectors, problem.workload.parts)
                    found[blocks] = min(found[blocks], seconds)
    return {blocks: seconds for blocks, seconds in found.items() if seconds < math.inf}
