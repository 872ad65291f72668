"""What pools gain by working at the same time: PPO split over two pools, beside its calls one after another.

    python experiments/overlap.py [--json FILE] [--steps N] [--quick]

Actor and reference live on one pool, critic, reward model and estimator on another, one process and one CPU core
each. Every variant runs the same script on the same sizes with responses of full length, so all steps do the same
work; the variants take turns, a step each, and medians are shown.

  order    overlapped: the dataflow as it is, every call made at once
           in turn: on the same processes, each call made when the one before has ended
  parts    rollout.parts: calls that generate a step's rows; scoring begins on the first that is done
  Σ calls  seconds of all calls; overlap is Σ calls / wall time of the step
  speed-up against the calls in turn in one part
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

POOLS = {
    "policy": PoolConfig(roles=("actor", "reference")),
    "judges": PoolConfig(roles=("critic", "reward", "estimator")),
}
PARTS = (1, 2, 4)
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


FULL = Size(width=256, layers=4, sequences=64, response_tokens=64)
QUICK = Size(width=32, layers=1, sequences=16, response_tokens=8)


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
    """The split placement with one value of `rollout.parts`, its roles ready for a step."""

    def __init__(self, config: Config, workers: Workers, workdir: pathlib.Path):
        job, self._workers = prepare(config), workers
        with Console(config.run.total_steps, live=False, file=sys.stderr) as console:
            beginning = WarmStart(
                config,
                job.source,
                job.tokenizer,
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


def config_of(size: Size, parts: int, workdir: pathlib.Path) -> Config:
    """Return PPO with a reward model on two pools."""
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
        cluster=ClusterConfig(pools=POOLS, compilation_cache=str(workdir / "programs")),
        data=DataConfig(prompts_per_step=size.sequences, max_prompt_tokens=LENGTH_UNIT),
        reward=RewardConfig(kind="model"),
        actor=ActorConfig(model=model, minibatch_sequences=size.sequences // 2),
        critic=CriticConfig(minibatch_sequences=size.sequences // 2),
        rollout=RolloutConfig(max_response_tokens=size.response_tokens, ignore_end_token=True, parts=parts),
        warm_start=WarmStartConfig(reward_steps=1),  # a reward model has to come from somewhere
    )


@contextlib.contextmanager
def splits(size: Size, parts: Sequence[int], workdir: pathlib.Path) -> Iterator[dict[int, Split]]:
    """Hold a split placement for each number of parts; those that wait for their turn use no CPU."""
    with running("", processes=len(POOLS) * len(parts)), contextlib.ExitStack() as stack:
        made = {}
        for count in parts:
            config = config_of(size, count, workdir)
            context = launched(config, prepare(config).derived, CallList(), workdir)
            made[count] = Split(config, stack.enter_context(context), workdir)
        yield made


def measure(made: Mapping[int, Split], steps: int) -> dict[tuple[int, bool], list[Step]]:
    """Return the steps of each variant (parts, in turn), which take turns; those that compile are left out."""
    measured: dict[tuple[int, bool], list[Step]] = {}
    for index in range(WARM_UP_STEPS + steps):
        for parts, split in made.items():
            for in_turn in (True, False):
                step = split.step(split.prompts(index), in_turn)
                if index >= WARM_UP_STEPS:
                    measured.setdefault((parts, in_turn), []).append(step)
                order = "in turn" if in_turn else "overlapped"
                print(f"step {index + 1}, {parts} part(s) {order}: {step.wall:.2f} s", file=sys.stderr)
    return measured


def table(measured: Mapping[tuple[int, bool], Sequence[Step]]) -> list[Row]:
    """Sum the steps up."""
    slowest = statistics.median(step.wall for step in measured[min(parts for parts, _ in measured), True])
    rows = []
    for (parts, in_turn), steps in measured.items():
        alone = [
            statistics.median(column)
            for column in zip(*(s.seconds for s in measured[parts, True]), strict=True)
        ]
        wall = statistics.median(step.wall for step in steps)
        rows.append(
            Row(
                parts=parts,
                order="in turn" if in_turn else "overlapped",
                steps=len(steps),
                wall=wall,
                fastest=min(step.wall for step in steps),
                slowest=max(step.wall for step in steps),
                calls=statistics.median(sum(step.seconds) for step in steps),
                overlap=statistics.median(sum(step.seconds) / step.wall for step in steps),
                speed_up=slowest / wall,
                bound=None if in_turn else bound(steps[0].nodes, alone),
                busiest=busiest(steps[0].nodes, alone),
            )
        )
    return rows


_HEADING = (
    "parts  order       wall s  (fastest–slowest)  Σ calls s  overlap  speed-up  bound s  busiest s\n"
    "-----  ----------  ------  -----------------  ---------  -------  --------  -------  ---------"
)


def _line(row: Row) -> str:
    bounded = "-" if row.bound is None else f"{row.bound:.2f}"
    extremes = f"({row.fastest:.2f}–{row.slowest:.2f})"
    return (
        f"{row.parts:5d}  {row.order:10}  {row.wall:6.2f}  {extremes:>17}  {row.calls:9.2f}  {row.overlap:7.2f}"
        f"  {row.speed_up:8.2f}  {bounded:>7}  {row.busiest:9.2f}"
    )


def _drawn(steps: Sequence[Step]) -> list[str]:
    """Draw the step of median wall time."""
    middle = sorted(steps, key=lambda step: step.wall)[len(steps) // 2]
    return gantt([span for spans in middle.spans for span in spans], GANTT_COLUMNS)


def main() -> None:
    """Measure, print the table and a picture of each order, and write the rows as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows to this file")
    parser.add_argument("--steps", type=int, default=9, help="measured steps of each variant")
    parser.add_argument(
        "--quick", action="store_true", help="models so small that overheads are all there is"
    )
    arguments = parser.parse_args()
    size, load = QUICK if arguments.quick else FULL, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        with splits(size, PARTS, workdir) as made:
            measured = measure(made, arguments.steps)
    rows = table(measured)
    hardware = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_at_start": load,
        "jax": jax.__version__,
    }
    print(
        f"{hardware}\n{size}, {config_of(size, 1, workdir).actor.model.parameter_count:,} parameters each\n"
    )
    print("\n".join([_HEADING, *map(_line, rows)]))
    for (parts, in_turn), steps in measured.items():
        if parts == 1 or not in_turn:
            order = "in turn" if in_turn else "overlapped"
            print("\n".join(["", f"{parts} part(s), {order}", *_drawn(steps)]))
    if arguments.json is not None:
        header = {"date": datetime.date.today().isoformat(), "hardware": hardware}
        header |= {"size": dataclasses.asdict(size), "rows": [dataclasses.asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(header, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
