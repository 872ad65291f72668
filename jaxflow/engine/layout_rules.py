"""Which ways of dividing a pool's devices can be, and the nearest ones where one cannot. Plain numbers throughout.

Knows no device, no mesh object and no config: a check can ask before anything exists.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from jaxflow.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Parallelism:
    """How one pool is divided: p-t-d-f in training, p_g-t_g-d_g-d in generation; every size at least 1."""

    data: int  # d
    fsdp: int  # f, ZeRO-3 over replicas
    tensor: int  # t
    generation_tensor: int  # t_g
    pipe: int  # p
    generation_pipe: int  # p_g

    @property
    def devices(self) -> int:
        """Return d·f·t·p."""
        return self.data * self.fsdp * self.tensor * self.pipe

    @property
    def micro_data(self) -> int:
        """Return d_g = p·t / (p_g·t_g), the generation replicas inside one training replica."""
        return self.pipe * self.tensor // (self.generation_pipe * self.generation_tensor)

    def distance(self, other: Parallelism) -> float:
        """Return Σ |log2 ratio| over the sizes: the doublings and halvings between the two."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return sum(abs(math.log2(mine / theirs)) for mine, theirs in pairs)


@dataclasses.dataclass(frozen=True)
class LayoutProblem:
    """One reason why a division cannot be."""

    field: str  # of Parallelism
    message: str  # what does not fit
    fitting: tuple[int, ...]  # values of the field that would, the rest left as it is; the nearest first


@dataclasses.dataclass(frozen=True)
class _Rule:
    """`ways` must divide `whole`."""

    field: str
    whole: Callable[[Parallelism, DecoderConfig], int]
    ways: Callable[[Parallelism], int]
    what: str
    over: str


# Key/value heads are not among them: where they are fewer than ranks they are replicated (Layout.fitting).
_RULES = (
    _Rule(
        "generation_tensor",
        lambda p, _: p.tensor,
        lambda p: p.generation_tensor,
        "tensor",
        "generation_tensor",
    ),
    _Rule("generation_pipe", lambda p, _: p.pipe, lambda p: p.generation_pipe, "pipe", "generation_pipe"),
    _Rule("tensor", lambda _, m: m.heads, lambda p: p.tensor, "the model's heads", "tensor"),
    _Rule("tensor", lambda _, m: m.mlp_width, lambda p: p.tensor, "the model's mlp_width", "tensor"),
    _Rule("fsdp", lambda _, m: m.width, lambda p: p.fsdp, "the model's width", "fsdp"),
    _Rule("pipe", lambda _, m: m.layers, lambda p: p.pipe, "the model's layers", "pipe"),
    _Rule(
        "tensor",
        lambda _, m: m.padded_vocabulary_size,
        lambda p: p.tensor * p.pipe,
        "the padded vocabulary",
        "tensor × pipe",
    ),
)


def layout_problems(asked: Parallelism, devices: int, model: DecoderConfig) -> list[LayoutProblem]:
    """Return every reason why this division of so many devices cannot hold the model; none if it can.

    t_g | t and p_g | p make generation axes a prefix of training axes for every weight (sharding.TABLE), so what
    passes switches layouts at the least possible traffic.
    """
    problems = []
    for rule in _RULES:
        whole, ways = rule.whole(asked, model), rule.ways(asked)
        if whole % ways != 0:
            problems.append(
                LayoutProblem(
                    rule.field,
                    f"{rule.what} = {whole} cannot be divided by {rule.over} = {ways}",
                    _fitting(rule, asked, devices, model),
                )
            )
    if asked.devices != devices:
        others = asked.devices // asked.data
        problems.append(
            LayoutProblem(
                "data",
                f"data {asked.data} × fsdp {asked.fsdp} × tensor {asked.tensor} × pipe {asked.pipe} ="
                f" {asked.devices} devices, the pool has {devices}",
                (devices // others,) if devices % others == 0 else (),
            )
        )
    return problems


def _fitting(rule: _Rule, asked: Parallelism, devices: int, model: DecoderConfig) -> tuple[int, ...]:
    tried = (dataclasses.replace(asked, **{rule.field: value}) for value in range(1, devices + 1))
    fitting = [one for one in tried if rule.whole(one, model) % rule.ways(one) == 0]
    return tuple(dataclasses.asdict(one)[rule.field] for one in sorted(fitting, key=asked.distance))


def nearest_layouts(
    asked: Parallelism, devices: int, model: DecoderConfig, count: int
) -> tuple[Parallelism, ...]:
    """Return up to `count` divisions of all the devices that can hold the model, the nearest first."""
    possible = (one for one in _divisions(devices) if not layout_problems(one, devices, model))
    return tuple(sorted(possible, key=asked.distance)[:count])


def _divisions(devices: int) -> Iterator[Parallelism]:
    for pipe in _divisors(devices):
        for tensor in _divisors(devices // pipe):
            for fsdp in _divisors(devices // pipe // tensor):
                data = devices // pipe // tensor // fsdp
                for t_g, p_g in itertools.product(_divisors(tensor), _divisors(pipe)):
                    yield Parallelism(data, fsdp, tensor, t_g, pipe, p_g)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
