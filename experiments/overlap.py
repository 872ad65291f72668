"""What pools gain by working at the same time: PPO split over two pools, beside its calls one after another.

    python experiments/overlap.py [--json FILE] [--steps N] [--quick]

The actor lives on one pool, critic, reward model and estimator on another, one process and one CPU core each.
Every variant runs the same script on the same sizes with responses of full length, so all steps do the same work;
the variants take turns, a step each, and medians are shown.

  reference the pool of the reference: the actor's ("policy") or the critic's ("judges")
  order    overlapped: the dataflow as it is, every call made at once
           in turn: on the same processes, each call made when the one before has ended
  parts    rollout.parts: calls that generate a step's rows; scoring begins on the first that is done
  Σ calls  seconds of all calls; overlap is Σ calls / wall time of the step
  speed-up against the same placement's calls in turn in one part
  bound    wall time if every call took what it takes in turn and nothing else took time: each call begins when its
           inputs are there and its pool is free, in the order in which calls are made
  busiest  seconds of calls, in turn, on the pool that has more of them: no schedule of this placement is faster
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxflow.config import (
    ActorConfig,
    ClusterConfig,
    Config,
    CriticConfig,
    DataConfig,
    PoolConfig,
    RewardConfig,
    RolloutConfig,
    WarmStartConfig,
)
from jaxflow.data.batches import PromptBatches
from jaxflow.dataflow import load_dataflow
from jaxflow.engine.batching import LENGTH_UNIT
from jaxflow.main import prepare
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.run_directory import RunDirectory
from jaxflow.stop import Stop
from jaxflow.tracking.console import Console
from jaxflow.tracking.timeline import gantt
from jaxflow.types import Prompts, Span
from jaxflow.warm_start import WarmStart
from jaxflow.workers.cluster import running
from jaxflow.workers.future import CallList, PendingCall
from jaxflow.workers.launch import Workers, launched

POOLS = {"policy": ("actor",), "judges": ("critic", "reward", "estimator")}
WARM_UP_STEPS = 2  # of every variant: programs are compiled in them
GANTT_COLUMNS = 88
CALL_SECONDS = 3600.0  # that a call in turn has to end


@dataclasses.dataclass(frozen=True)
class Size:
    """How much there is to do in a step; all models have one shape."""

    width: int
    layers: int
    sequences: int
    response_tokens: int


FULL = Size(width=256, layers=4, sequences=32, response_tokens=128)
QUICK = Size(width=32, layers=1, sequences=16, response_tokens=8)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the reference lives, and in how many parts rows are generated."""

    reference: str  # pool
    parts: int


PLANS = (Plan("policy", 1), Plan("policy", 2), Plan("judges", 1), Plan("judges", 2), Plan("judges", 4))


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of a step, by what it has to wait for."""

    pool: str
    stage: str
    after: tuple[int, ...]  # positions of the calls that make its inputs


@dataclasses.dataclass(frozen=True)
class Step:
    """One step as it went."""

    wall: float  # seconds, from the prompts in hand to the metrics in hand
    nodes: tuple[Node, ...]
    spans: tuple[tuple[Span, ...], ...]  # of each node: the call, then what happened inside it

    @property
    def seconds(self) -> list[float]:
        """Return the seconds of each call."""
        return [spans[0].seconds for spans in self.spans]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: medians over steps, seconds."""

    reference: str
    parts: int
    order: str
    steps: int
    wall: float
    fastest: float  # wall of the fastest step
    slowest: float
    calls: float  # Σ of calls
    overlap: float
    speed_up: float
    bound: float | None  # None in turn
    busiest: float


class InTurn:
    """A role whose every call has ended when it returns: what a controller without futures can do."""

    def __init__(self, group: Any, workers: Workers):
        for name in group.methods:
            self.__dict__[name] = functools.partial(self._call, vars(group)[name], workers)

    def _call(self, method: Callable[..., Any], workers: Workers, *arguments: Any) -> Any:
        future = method(*arguments)
        if not workers.settled(CALL_SECONDS):
            raise TimeoutError(f"a call did not end in {CALL_SECONDS:g} s")
        return future


class Split:
    """One plan's processes, its roles ready for a step."""

    def __init__(self, config: Config, workers: Workers, workdir: pathlib.Path):
        job, self._workers = prepare(config), workers
        with Console(config.run.total_steps, live=False, file=sys.stderr) as console:
            beginning = WarmStart(
                job,
                RunDirectory(workdir, config.checkpoint.keep),
                workers,
                console,
                Stop(),
                console.note,
            ).run()
        self._dataflow = load_dataflow(config.algorithm.name)
        self._groups = {role: workers.group(role) for role in self._dataflow.cast}
        for role, method, folder in (
            ("actor", "load", beginning.actor),
            ("reference", "load", beginning.actor),
            ("critic", "load_backbone", beginning.actor),
            ("reward", "load", beginning.reward),
        ):
            vars(self._groups[role])[method](str(folder)).result()
        workers.collect()
        self._in_turn = {role: InTurn(group, workers) for role, group in self._groups.items()}
        self._batches = PromptBatches(
            job.source.train,
            config.data.prompts_per_step,
            config.rollout.samples_per_prompt,
            config.data.shuffle,
            config.run.seed,
            LENGTH_UNIT,
        )

    def prompts(self, step: int) -> Prompts:
        """Return the prompts of a step."""
        return self._batches.at(step)

    def step(self, prompts: Prompts, in_turn: bool) -> Step:
        """Run one step of the dataflow."""
        workers = self._workers
        started = time.perf_counter()
        futures = self._dataflow(self._in_turn if in_turn else self._groups, workers.put(prompts))
        nodes = nodes_of(workers.calls.unfinished)
        for future in futures:
            future.result()
        spans = workers.collect()
        return Step(time.perf_counter() - started, nodes, tuple(map(tuple, spans)))


def nodes_of(calls: Sequence[PendingCall]) -> tuple[Node, ...]:
    """Return what each call of a step waits for: of inputs that come in as many parts as it has, its own part."""
    same: dict[tuple[str, str], list[PendingCall]] = {}
    for call in calls:
        same.setdefault((call.role, call.method), []).append(call)
    position = {call: index for index, call in enumerate(calls)}
    nodes = []
    for call in calls:
        parts = same[call.role, call.method]
        waits = []
        for made in call.inputs:
            its_parts = same[made.role, made.method]
            if len(its_parts) != len(parts) or its_parts.index(made) == parts.index(call):
                waits.append(position[made])
        nodes.append(Node(call.pool, call.stage, tuple(waits)))
    return tuple(nodes)


def bound(nodes: Sequence[Node], seconds: Sequence[float]) -> float:
    """Return the end of the last call if each begins when its inputs are there and its pool is free."""
    ends: list[float] = []
    free = dict.fromkeys((node.pool for node in nodes), 0.0)
    for node, duration in zip(nodes, seconds, strict=True):
        begin = max([free[node.pool], *(ends[index] for index in node.after)])
        ends.append(begin + duration)
        free[node.pool] = ends[-1]
    return max(ends)


def busiest(nodes: Sequence[Node], seconds: Sequence[float]) -> float:
    """Return the seconds of calls on the pool that has most of them."""
    busy = dict.fromkeys((node.pool for node in nodes), 0.0)
    for node, duration in zip(nodes, seconds, strict=True):
        busy[node.pool] += duration
    return max(busy.values())


def config_of(size: Size, plan: Plan, workdir: pathlib.Path) -> Config:
    """Return PPO with a reward model on two pools."""
    pools = {
        name: PoolConfig(roles=(*roles, "reference") if name == plan.reference else roles)
        for name, roles in POOLS.items()
    }
    heads = size.width // 32
    model = DecoderConfig(
        width=size.width,
        layers=size.layers,
        heads=heads,
        kv_heads=heads,
        head_width=32,
        mlp_width=4 * size.width,
        remat=False,
    )
    return Config(
        cluster=ClusterConfig(pools=pools, compilation_cache=str(workdir / "programs")),
        data=DataConfig(prompts_per_step=size.sequences, max_prompt_tokens=LENGTH_UNIT),
        reward=RewardConfig(kind="model"),
        actor=ActorConfig(model=model, minibatch_sequences=size.sequences // 2),
        critic=CriticConfig(minibatch_sequences=size.sequences // 2),
        rollout=RolloutConfig(
            max_response_tokens=size.response_tokens, ignore_end_token=True, parts=plan.parts
        ),
        warm_start=WarmStartConfig(reward_steps=1),  # a reward model has to come from somewhere
    )


@contextlib.contextmanager
def splits(size: Size, plans: Sequence[Plan], workdir: pathlib.Path) -> Iterator[dict[Plan, Split]]:
    """Hold the processes of each plan; those that wait for their turn use no CPU."""
    with running("", processes=len(POOLS) * len(plans)), contextlib.ExitStack() as stack:
        made = {}
        for plan in plans:
            config = config_of(size, plan, workdir)
            context = launched(config, prepare(config).derived, CallList(), workdir)
            made[plan] = Split(config, stack.enter_context(context), workdir)
        yield made


def measure(made: Mapping[Plan, Split], steps: int) -> dict[tuple[Plan, bool], list[Step]]:
    """Return the steps of each plan, in turn and not; all take turns, and steps that compile are left out."""
    measured: dict[tuple[Plan, bool], list[Step]] = {}
    for index in range(WARM_UP_STEPS + steps):
        for plan, split in made.items():
            for in_turn in (True, False):
                step = split.step(split.prompts(index), in_turn)
                if index >= WARM_UP_STEPS:
                    measured.setdefault((plan, in_turn), []).append(step)
                print(f"step {index + 1}, {plan}, {_order(in_turn)}: {step.wall:.2f} s", file=sys.stderr)
    return measured


def table(measured: Mapping[tuple[Plan, bool], Sequence[Step]]) -> list[Row]:
    """Sum the steps up."""
    return [_row(plan, in_turn, steps, measured) for (plan, in_turn), steps in measured.items()]


def _row(
    plan: Plan, in_turn: bool, steps: Sequence[Step], measured: Mapping[tuple[Plan, bool], Sequence[Step]]
) -> Row:
    alone = [step.seconds for step in measured[plan, True]]
    costs = [statistics.median(call) for call in zip(*alone, strict=True)]
    whole = measured[dataclasses.replace(plan, parts=1), True]
    wall = statistics.median(step.wall for step in steps)
    return Row(
        reference=plan.reference,
        parts=plan.parts,
        order=_order(in_turn),
        steps=len(steps),
        wall=wall,
        fastest=min(step.wall for step in steps),
        slowest=max(step.wall for step in steps),
        calls=statistics.median(sum(step.seconds) for step in steps),
        overlap=statistics.median(sum(step.seconds) / step.wall for step in steps),
        speed_up=statistics.median(step.wall for step in whole) / wall,
        bound=None if in_turn else bound(steps[0].nodes, costs),
        busiest=busiest(steps[0].nodes, costs),
    )


def _order(in_turn: bool) -> str:
    return "in turn" if in_turn else "overlapped"


_HEADING = (
    "reference  parts  order       wall s  (fastest–slowest)  Σ calls s  overlap  speed-up  bound s  busiest s\n"
    "---------  -----  ----------  ------  -----------------  ---------  -------  --------  -------  ---------"
)


def _line(row: Row) -> str:
    bounded = "-" if row.bound is None else f"{row.bound:.2f}"
    extremes = f"({row.fastest:.2f}–{row.slowest:.2f})"
    return (
        f"{row.reference:9}  {row.parts:5d}  {row.order:10}  {row.wall:6.2f}  {extremes:>17}"
        f"  {row.calls:9.2f}  {row.overlap:7.2f}  {row.speed_up:8.2f}  {bounded:>7}  {row.busiest:9.2f}"
    )


def _pictures(measured: Mapping[tuple[Plan, bool], Sequence[Step]]) -> Iterator[str]:
    """Draw the steps of median wall time: of whole steps in turn, of all steps overlapped."""
    for (plan, in_turn), steps in measured.items():
        if in_turn and plan.parts > 1:
            continue
        yield f"\nreference: {plan.reference}, {plan.parts} part(s), {_order(in_turn)}"
        middle = sorted(steps, key=lambda step: step.wall)[len(steps) // 2]
        yield from gantt([span for spans in middle.spans for span in spans], GANTT_COLUMNS)


def main() -> None:
    """Measure, print the table and a picture of each order, and write the rows as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows to this file")
    parser.add_argument("--steps", type=int, default=7, help="measured steps of each variant")
    parser.add_argument(
        "--quick", action="store_true", help="models so small that overheads are all there is"
    )
    arguments = parser.parse_args()
    size, load = QUICK if arguments.quick else FULL, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        with splits(size, PLANS, workdir) as made:
            measured = measure(made, arguments.steps)
    hardware = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_at_start": load,
        "jax": jax.__version__,
    }
    parameters = prepare(config_of(size, PLANS[0], workdir)).derived.actor_model.parameter_count
    print(f"{hardware}\n{size}, {parameters:,} parameters in each of four models\n")
    rows = table(measured)
    print("\n".join([_HEADING, *map(_line, rows), *_pictures(measured)]))
    if arguments.json is not None:
        header = {"date": datetime.date.today().isoformat(), "hardware": hardware}
        header |= {"size": dataclasses.asdict(size), "parameters": parameters}
        header["rows"] = [dataclasses.asdict(row) for row in rows]
        arguments.json.write_text(json.dumps(header, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
