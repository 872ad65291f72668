"""Seconds that the controller works per step, beside the number of processes, rows and response tokens.

    python experiments/controller_overhead.py [--json FILE] [--steps N] [--quick]

The real controller runs the real PPO script over real worker processes; only the models are trivial: every role
is played by `Idle`, which answers with arrays of the right kinds and sizes and computes nothing. In the sweeps it
answers at once, so that a step is nothing but control and transport. In the last cases it sleeps, as a process
does whose devices are at work, until a step takes what the fastest one of HybridFlow's evaluation takes: 56 s,
7B PPO on 16 machines of 8 GPUs (1024 sequences of 2048 tokens at 37,500 tokens per second, read off Fig. 9).

  controller  CPU seconds of the controller's thread in a step: perf/controller_seconds
  driver      CPU seconds of its whole process from step to step: Ray's threads, log and console included
  share       controller / wall time of the step
  bytes       perf/controller_bytes: what the controller was given and gave away
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from jaxflow.batch_algebra import Derived
from jaxflow.config import (
    ActorConfig,
    AlgorithmConfig,
    CheckpointConfig,
    ClusterConfig,
    Config,
    CriticConfig,
    DataConfig,
    MeshConfig,
    PoolConfig,
    RolloutConfig,
    RunConfig,
)
from jaxflow.controller import Controller
from jaxflow.dataflow import Dataflow, load_dataflow
from jaxflow.main import prepare
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.description import write_description
from jaxflow.models.families import TOKENS
from jaxflow.run_directory import RunDirectory
from jaxflow.stop import Stop
from jaxflow.tracking.console import Console
from jaxflow.types import Experience, Metrics, Prompts, Rollout, Scores, TokenLogProbs
from jaxflow.workers.future import CallList
from jaxflow.workers.launch import connected, launched
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.transfer import DP_PROTO, ONE_TO_ALL, THREE_D_ALL_MICRO_DP, THREE_D_PROTO

PAPER_STEP_SECONDS = 1024 * 2048 / 37_500
CALLS_PER_STEP = 9  # of PPO
GOAL_SHARE = 0.02
START_SECONDS = 600.0  # many processes share few cores


class Idle:
    """Plays every role of PPO: answers at once, and computes nothing."""

    seconds_per_call = 0.0

    def __init__(self, config: Config, derived: Derived, place: Place):
        self._response_tokens = config.rollout.max_response_tokens

    def _zeros(self, rollout: Rollout | Experience) -> np.ndarray:
        time.sleep(self.seconds_per_call)
        return np.zeros(rollout.tokens.shape, np.float32)

    @exposed("load", ONE_TO_ALL)
    def load(self, directory: str) -> None:
        """Start from weights that there are none of."""

    @exposed("load", ONE_TO_ALL)
    def load_backbone(self, directory: str) -> None:
        """Start from weights that there are none of."""

    @exposed("gen", THREE_D_ALL_MICRO_DP, by_parts=True)
    def generate(self, prompts: Prompts) -> Rollout:
        """Answer every prompt at full length."""
        time.sleep(self.seconds_per_call)
        rows, width = prompts.tokens.shape
        tokens = np.pad(prompts.tokens, ((0, 0), (0, self._response_tokens)))
        zeros = np.zeros(tokens.shape, np.float32)
        return Rollout(
            tokens=tokens,
            lengths=np.full(rows, tokens.shape[1], np.int32),
            response_mask=np.broadcast_to(np.arange(tokens.shape[1]) >= width, tokens.shape).copy(),
            rollout_log_probs=zeros,
            behaviour_log_probs=zeros,
            finished=np.zeros(rows, bool),
            groups=prompts.groups,
            policy_updates=np.zeros(rows, np.int32),
            stopped=np.zeros(rows, bool),
        )

    @exposed("score", THREE_D_PROTO, by_parts=True)
    def log_probs(self, rollout: Rollout) -> TokenLogProbs:
        """Find every token certain."""
        zeros = self._zeros(rollout)
        return TokenLogProbs(zeros, zeros)

    @exposed("values", THREE_D_PROTO, by_parts=True)
    def values(self, rollout: Rollout) -> np.ndarray:
        """Expect nothing."""
        return self._zeros(rollout)

    @exposed("reward", DP_PROTO, by_parts=True)
    def score(self, rollout: Rollout, prompts: Prompts) -> Scores:
        """Give nothing."""
        nothing = self._zeros(rollout)[:, 0]
        return Scores(nothing, nothing, np.zeros(len(nothing), bool))

    @exposed("adv", THREE_D_PROTO)
    def experience(
        self,
        rollout: Rollout,
        scores: Scores,
        actor_log_probs: TokenLogProbs,
        reference_log_probs: TokenLogProbs,
        values: np.ndarray,
    ) -> Experience:
        """Put together what an update reads."""
        advantages = self._zeros(rollout)
        return Experience(
            rollout.tokens,
            rollout.lengths,
            rollout.response_mask,
            actor_log_probs.log_probs,
            reference_log_probs.log_probs,
            values,
            advantages,
            returns=advantages,
            policy_updates=rollout.policy_updates,
        )

    @exposed("adv", THREE_D_PROTO, replicated=True)
    def statistics(self, rollout: Rollout, scores: Scores, experience: Experience) -> Metrics:
        """Describe the step in as many named scalars as the real role does."""
        self._zeros(rollout)
        return {f"statistics/{index}": 0.0 for index in range(30)}

    @exposed("update", THREE_D_PROTO, replicated=True)
    def update(self, experience: Experience) -> Metrics:
        """Learn nothing, and describe it in as many named scalars as the real roles do."""
        self._zeros(experience)
        return {f"update/{index}": 0.0 for index in range(12)}


class Paced(Idle):
    """Takes as long as models do; its sleep leaves the CPU to others, as a process does whose GPUs work."""

    seconds_per_call = PAPER_STEP_SECONDS / CALLS_PER_STEP


_PPO = load_dataflow("ppo")
IDLE = Dataflow(_PPO.step, _PPO.cast, dict.fromkeys(_PPO.cast, Idle))
PACED = Dataflow(_PPO.step, _PPO.cast, dict.fromkeys(_PPO.cast, Paced))


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: how many processes, rows and response tokens, and whose roles."""

    sweep: str
    processes: int
    rows: int
    response_tokens: int
    dataflow: str  # IDLE | PACED
    steps: int  # measured
    warm_up_steps: int = 3  # left out: connections are made and code is read in them


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one step said."""

    wall: float  # seconds
    controller_seconds: float
    driver_seconds: float
    controller_bytes: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: medians over the steps of a case."""

    case: Case
    wall: float
    controller_seconds: float
    driver_seconds: float
    controller_bytes: int

    @property
    def share(self) -> float:
        """Return the controller's part of the step."""
        return self.controller_seconds / self.wall


class Clock(Console):
    """A console that writes nothing and keeps what it is told of each step."""

    def __init__(self, total_steps: int):
        super().__init__(total_steps, live=False, file=io.StringIO())
        self.steps: list[Measured] = []
        self._cpu = time.process_time()

    def step(self, step: int, metrics: Metrics, seconds: float) -> None:
        """Keep a finished step."""
        super().step(step, metrics, seconds)
        cpu = time.process_time()
        self.steps.append(
            Measured(
                wall=seconds,
                controller_seconds=metrics["perf/controller_seconds"],
                driver_seconds=cpu - self._cpu,
                controller_bytes=round(metrics["perf/controller_bytes"]),
            )
        )
        self._cpu = cpu


def cases(steps: int, quick: bool) -> list[Case]:
    """Return the runs; the quick ones show that they run."""
    if quick:
        return [
            Case("processes", 1, 16, 8, "IDLE", steps),
            Case("processes", 2, 16, 8, "IDLE", steps),
            Case("response tokens", 2, 16, 64, "IDLE", steps),
        ]
    processes = [Case("processes", count, 64, 64, "IDLE", steps) for count in (1, 2, 4, 8, 16)]
    rows = [Case("rows", 4, count, 64, "IDLE", steps) for count in (64, 256, 1024, 4096)]
    tokens = [Case("response tokens", 4, 256, count, "IDLE", steps) for count in (8, 32, 64, 128, 256)]
    paced = [Case("paper's step", count, 1024, 2040, "PACED", 2, 1) for count in (1, 16)]
    return [*processes, *rows, *tokens, *paced]


def config_of(case: Case, weights: pathlib.Path) -> Config:
    """Return the run of a case: all roles on one pool, a device in each process.

    The folder of `weights` gets what describes some, and none: nothing here computes with them.
    """
    write_description(weights, DecoderConfig(), TOKENS)
    pool = PoolConfig(_PPO.cast, hosts=case.processes, mesh=MeshConfig(data=case.processes))
    return Config(
        run=RunConfig(
            total_steps=case.warm_up_steps + case.steps,
            evaluate_every_steps=0,
            evaluate_before=False,
            evaluate_after=False,
        ),
        cluster=ClusterConfig(
            pools={"main": pool}, start_timeout_seconds=START_SECONDS, heartbeat_timeout_seconds=START_SECONDS
        ),
        data=DataConfig(prompts_per_step=case.rows, max_prompt_tokens=8),
        actor=ActorConfig(weights=str(weights), minibatch_sequences=case.rows),
        critic=CriticConfig(minibatch_sequences=case.rows),
        rollout=RolloutConfig(max_response_tokens=case.response_tokens),
        algorithm=AlgorithmConfig(name=f"{pathlib.Path(__file__).resolve()}:{case.dataflow}"),
        checkpoint=CheckpointConfig(every_minutes=0.0),
    )


def measure(case: Case) -> Row:
    """Run a case and sum its steps up."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        config = config_of(case, workdir)
        job, calls = prepare(config), CallList()
        directory = RunDirectory(workdir, config.checkpoint.keep)
        with (
            Clock(config.run.total_steps) as clock,
            connected(config, job.derived),
            launched(config, job.derived, calls, workdir) as workers,
        ):
            Controller(job, directory, workers, clock, Stop(), time.monotonic()).run(None)
    steps = clock.steps[case.warm_up_steps :]
    return Row(
        case=case,
        wall=statistics.median(step.wall for step in steps),
        controller_seconds=statistics.median(step.controller_seconds for step in steps),
        driver_seconds=statistics.median(step.driver_seconds for step in steps),
        controller_bytes=round(statistics.median(step.controller_bytes for step in steps)),
    )


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return b of the fit seconds = a·size^b, least squares of logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)


def verdict(rows: Sequence[Row]) -> list[str]:
    """Say what grows how, and the share that the goal is about."""
    lines = []
    for sweep, size in (("processes", "processes"), ("rows", "rows")):
        swept = [row for row in rows if row.case.sweep == sweep]
        sizes = [vars(row.case)[size] for row in swept]
        if len(sizes) > 1:
            controller = exponent(sizes, [row.controller_seconds for row in swept])
            driver = exponent(sizes, [row.driver_seconds for row in swept])
            lines.append(f"controller seconds grow as {size}^{controller:.2f}, the driver's as ^{driver:.2f}")
    swept = [row.controller_bytes for row in rows if row.case.sweep == "response tokens"]
    if swept:
        lines.append(f"bytes over all response lengths: {min(swept):,} to {max(swept):,}")
    for row in rows:
        if row.case.dataflow == "PACED":
            met = "within" if row.share < GOAL_SHARE else "misses"
            lines.append(
                f"{row.case.processes} process(es), a step of {row.wall:.0f} s: controller {row.share:.2%} of it, "
                f"driver {row.driver_seconds / row.wall:.2%}; {met} the goal of {GOAL_SHARE:.0%}"
            )
    return lines


_HEADING = (
    "sweep            processes   rows  tokens    step s  controller s  driver s    share      bytes\n"
    "---------------  ---------  -----  ------  --------  ------------  --------  -------  ---------"
)


def _line(row: Row) -> str:
    case = row.case
    return (
        f"{case.sweep:15}  {case.processes:9d}  {case.rows:5d}  {case.response_tokens:6d}  {row.wall:8.4f}"
        f"  {row.controller_seconds:12.4f}  {row.driver_seconds:8.4f}  {row.share:7.2%}  {row.controller_bytes:9,d}"
    )


def main() -> None:
    """Measure, print the table and the verdict, and write the rows as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows to this file")
    parser.add_argument("--steps", type=int, default=30, help="measured steps of each run of the sweeps")
    parser.add_argument("--quick", action="store_true", help="three small runs")
    arguments = parser.parse_args()
    load, rows = os.getloadavg()[0], []
    print(_HEADING, flush=True)
    for case in cases(arguments.steps, arguments.quick):
        rows.append(measure(case))
        print(_line(rows[-1]), flush=True)
    hardware = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_at_start": load,
        "ray": importlib.metadata.version("ray"),
    }
    print("\n".join(["", *verdict(rows), str(hardware)]))
    if arguments.json is not None:
        header = {"date": datetime.date.today().isoformat(), "hardware": hardware}
        header["rows"] = [dataclasses.asdict(row) | {"share": row.share} for row in rows]
        arguments.json.write_text(json.dumps(header, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
