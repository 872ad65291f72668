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
    expert: int = 1  # ways that experts are cut, over replicas that see different rows

    @property
    def devices(self) -> int:
        """Return d·f·expert·t·p."""
        return self.data * self.fsdp * self.expert * self.tensor * self.pipe

    @property
    def replicas(self) -> int:
        """Return d·f·expert, the groups of devices that the rows of training and scoring are split over."""
        return self.data * self.fsdp * self.expert

    @property
    def micro_data(self) -> int:
        """Return d_g = p·t / (p_g·t_g), the generation replicas inside one training replica."""
        return self.pipe * self.tensor // (self.generation_pipe * self.generation_tensor)

    @property
    def generating(self) -> Parallelism:
        """Return the generation layout as a layout of its own: t_g, p_g, and all else replicas."""
        return Parallelism(
            data=self.data * self.fsdp * self.micro_data,
            fsdp=1,
            tensor=self.generation_tensor,
            generation_tensor=self.generation_tensor,
            pipe=self.generation_pipe,
            generation_pipe=self.generation_pipe,
            expert=self.expert,
        )

    def distance(self, other: Parallelism) -> float:
        """Return Σ |log2 ratio| over the sizes: the doublings and halvings between the two."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return sum(abs(math.log2(mine / theirs)) for mine, theirs in pairs)


@dataclasses.dataclass(frozen=True)
class LayoutProblem:
    """One reason why a division cannot be."""

    field: str  # of Parallelism
    key: str  # of the model, what does not fit; empty where no model is asked
    message: str  # what does not fit
    mend: str  # what else could change: a key of the model and its value; empty where there is none
    fitting: tuple[int, ...]  # values of the field that would, the rest left as it is; the nearest first


@dataclasses.dataclass(frozen=True)
class _Rule:
    """`ways` must divide `whole`."""

    field: str
    key: str
    whole: Callable[[Parallelism, DecoderConfig], int]
    ways: Callable[[Parallelism], int]
    what: str
    over: str
    mend: Callable[[DecoderConfig, int], str]  # (model, ways) -> what of the model would do


def _nothing(model: DecoderConfig, ways: int) -> str:
    return ""


def _more_of(key: str) -> Callable[[DecoderConfig, int], str]:
    return lambda model, ways: f"{key} to a multiple of {ways}"


def _padded_heads(model: DecoderConfig, ways: int) -> str:
    group = model.heads // model.kv_heads
    unit = ways // math.gcd(ways, model.kv_heads)
    return f"head_padding to {-group % unit}"


def _wider_tables(model: DecoderConfig, ways: int) -> str:
    return f"vocabulary_multiple to {math.lcm(model.vocabulary_multiple, ways)}"


def _of_model(field: str, key: str, whole: Callable[[DecoderConfig], int]) -> _Rule:
    """Return the rule that an axis divides a size of the model."""
    return _Rule(
        field,
        key,
        lambda _, model: whole(model),
        lambda parallelism: vars(parallelism)[field],
        f"the model's {key}",
        field,
        _more_of(key),
    )


# Key/value heads are not among them: where they are fewer than ranks they are replicated (Layout.fitting).
_RULES = (
    _Rule(
        "generation_tensor",
        "",
        lambda p, _: p.tensor,
        lambda p: p.generation_tensor,
        "tensor",
        "generation_tensor",
        _nothing,
    ),
    _Rule(
        "generation_pipe",
        "",
        lambda p, _: p.pipe,
        lambda p: p.generation_pipe,
        "pipe",
        "generation_pipe",
        _nothing,
    ),
    _Rule(
        "tensor",
        "heads",
        lambda _, m: m.padded_heads,
        lambda p: p.tensor,
        "the model's heads",
        "tensor",
        _padded_heads,
    ),
    _of_model("tensor", "mlp_width", lambda m: m.mlp_width),
    _of_model("fsdp", "width", lambda m: m.width),
    _of_model("pipe", "layers", lambda m: m.layers),
    _Rule(
        "expert",
        "experts",
        lambda _, m: max(m.experts, 1),
        lambda p: p.expert,
        "the model's experts (a dense model counts as one)",
        "expert",
        _more_of("experts"),
    ),
    _Rule(
        "tensor",
        "vocabulary_size",
        lambda _, m: m.padded_vocabulary_size,
        lambda p: p.tensor * p.pipe,
        "the padded vocabulary",
        "tensor × pipe",
        _wider_tables,
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
                    rule.key,
                    f"{rule.what} = {whole} cannot be divided by {rule.over} = {ways}",
                    rule.mend(model, ways),
                    _fitting(rule, asked, devices, model),
                )
            )
    if asked.devices != devices:
        others = asked.devices // asked.data
        problems.append(
            LayoutProblem(
                "data",
                "",
                f"data {asked.data} × fsdp {asked.fsdp} × expert {asked.expert} × tensor {asked.tensor} × pipe"
                f" {asked.pipe} = {asked.devices} devices, the pool has {devices}",
                "",
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
    possible = (one for one in _divisions(devices, model) if not layout_problems(one, devices, model))
    return tuple(sorted(possible, key=asked.distance)[:count])


def _divisions(devices: int, model: DecoderConfig) -> Iterator[Parallelism]:
    for expert in _divisors(math.gcd(devices, max(model.experts, 1))):
        for pipe in _divisors(devices // expert):
            for tensor in _divisors(devices // expert // pipe):
                for fsdp in _divisors(devices // expert // pipe // tensor):
                    data = devices // expert // pipe // tensor // fsdp
                    for t_g, p_g in itertools.product(_divisors(tensor), _divisors(pipe)):
                        yield Parallelism(data, fsdp, tensor, t_g, pipe, p_g, expert)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
