"""Which layouts are tried for a role on so many devices. Knows shapes and batch sizes, no time and no memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping.load import RoleLoad
from jaxflow.mapping.stages import Setting


@dataclasses.dataclass(frozen=True)
class Freedom:
    """What a search may vary."""

    pipe: bool = True  # pipelines over layers
    fsdp: bool = True  # weights cut over replicas
    offload: bool = False  # models wait in their host's memory while others of their pool compute


def training_layouts(
    load: RoleLoad, devices: int, setting: Setting, freedom: Freedom
) -> tuple[Parallelism, ...]:
    """Return every layout of training and scoring on all of `devices`: t within a host, p, f, a mixture's experts
    over what divides them, and d the rest.

    Their generation sizes are those of training: `generation_layouts` has the others.
    """
    return tuple(_training(load, devices, setting, freedom))


def _training(load: RoleLoad, devices: int, setting: Setting, freedom: Freedom) -> Iterator[Parallelism]:
    model = load.model.decoder
    for tensor in divisors(devices):
        if tensor > setting.devices_per_host or _uneven(
            tensor, model.padded_heads, model.mlp_width, model.padded_vocabulary_size
        ):
            continue
        if not _heads_split(model.kv_heads, tensor):
            continue
        for pipe in divisors(devices // tensor) if freedom.pipe else (1,):
            if _uneven(pipe, model.layers) or _uneven(tensor * pipe, model.padded_vocabulary_size):
                continue
            replicas = devices // tensor // pipe
            if not _rows_split(load, replicas, setting):
                continue
            for fsdp in divisors(replicas) if freedom.fsdp else (1,):
                if _uneven(fsdp, model.width):
                    continue
                for expert in (
                    divisors(math.gcd(replicas // fsdp, model.experts)) if model.experts > 0 else (1,)
                ):
                    yield Parallelism(
                        data=replicas // fsdp // expert,
                        fsdp=fsdp,
                        tensor=tensor,
                        generation_tensor=tensor,
                        pipe=pipe,
                        generation_pipe=pipe if setting.engine.generation_pipes else 1,
                        expert=expert,
                    )


def generation_layouts(load: RoleLoad, training: Parallelism, setting: Setting) -> list[Parallelism]:
    """Return this training layout with every generation layout whose axes are prefixes of its own."""
    found = []
    for generation_tensor in divisors(training.tensor):
        for generation_pipe in divisors(training.pipe) if setting.engine.generation_pipes else (1,):
            one = dataclasses.replace(
                training, generation_tensor=generation_tensor, generation_pipe=generation_pipe
            )
            replicas = one.replicas * one.micro_data
            if not setting.engine.rows_divide or _parts_split(replicas, setting):
                found.append(one)
    return found


def _heads_split(kv_heads: int, tensor: int) -> bool:
    """Return whether key/value heads are cut over the ranks or each over several: `Layout.fitting` does no third."""
    return kv_heads % tensor == 0 or tensor % kv_heads == 0


def _uneven(ways: int, *sizes: int) -> bool:
    return any(size % ways != 0 for size in sizes)


def _rows_split(load: RoleLoad, replicas: int, setting: Setting) -> bool:
    """Return whether replicas get rows: equally many where the engine asks for that, else at least one each."""
    if not setting.engine.rows_divide:
        return replicas <= (load.minibatch_sequences if load.trained else setting.workload.part_sequences)
    return load.minibatch_sequences % replicas == 0 and _parts_split(replicas, setting)


def _parts_split(replicas: int, setting: Setting) -> bool:
    """Return whether replicas share each part of a step's rows equally."""
    return setting.workload.sequences % (setting.workload.parts * replicas) == 0


@functools.cache
def divisors(number: int) -> tuple[int, ...]:
    """Return the divisors of a positive number, ascending."""
    return tuple(size for size in range(1, number + 1) if number % size == 0)
