"""What is learnt before the first reinforcement-learning step: the weights that policy and reward model start from.

Knows the run's data and which role teaches what; no algorithm, no model and no Ray.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxflow.data.batches import DemonstrationBatches, JudgementBatches
from jaxflow.dataflow import load_dataflow
from jaxflow.job import Job
from jaxflow.run_directory import RunDirectory
from jaxflow.stop import Stop
from jaxflow.tracking.console import Console
from jaxflow.types import Future, Metrics
from jaxflow.workers.group import WorkerGroup
from jaxflow.workers.launch import Workers

_METRICS = "warm_start.json"  # beside the weights: what the first row of metrics says of them


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Where the first weights lie."""

    actor: Path | None  # None: the run has no policy, and none to start from
    reward: Path | None  # None: the reward is a function
    metrics: dict[str, float]  # of the warm start, whenever it was


class WarmStart:
    """Makes the first weights, once per workdir."""

    def __init__(
        self,
        job: Job,
        directory: RunDirectory,
        workers: Workers,
        console: Console,
        stop: Stop,
        note_first: Callable[[str], None],
    ):
        self._job, self._config = job, job.config
        self._directory, self._workers, self._console, self._stop = directory, workers, console, stop
        self._note_first = note_first
        placed = {role for plan in job.derived.pools.values() for role in plan.roles}
        dataflow = load_dataflow(job.config.algorithm.name)
        self._has_policy = "actor" in dataflow.cast
        asked = "reward" in dataflow.playing(placed) and "reward" not in dataflow.taught
        self._asks_reward_model = asked and job.config.reward.kind == "model"

    def run(self) -> Beginning | None:
        """Return the first weights, made if they are not there yet; None if a signal came first."""
        if self._directory.initial() is None:
            staged = self._directory.stage_initial()
            metrics = self._teach(staged)
            if metrics is None:
                return None
            (staged / _METRICS).write_text(json.dumps(metrics))
            self._directory.commit_initial()
        return self._beginning(self._directory.initial())

    def _beginning(self, folder: Path) -> Beginning:
        config = self._config
        taught = folder / "actor" if self._has_policy else None
        actor = Path(config.actor.weights) if config.actor.weights else taught
        reward = None
        if self._asks_reward_model:
            reward = Path(config.reward.weights) if config.reward.weights else folder / "reward"
        return Beginning(actor, reward, json.loads((folder / _METRICS).read_text()))

    def _teach(self, staged: Path) -> dict[str, float] | None:
        """Write the weights that are not given; return what there is to say, None if a signal cut it short."""
        config, settings = self._config, self._config.warm_start
        actor, metrics = Path(config.actor.weights), {}
        if self._has_policy and not config.actor.weights:
            actor = staged / "actor"
            student = self._workers.group("student")
            student.create().result()
            lessons = self._lessons(
                DemonstrationBatches, settings.steps, lambda batch: [student.imitate(batch)]
            )
            told = self._taught(student, lessons, "sft/loss", "warm_start")
            if told is None:
                return None
            self._leave(student, actor)
            metrics |= told
        if self._asks_reward_model and not config.reward.weights:
            verifier = self._workers.group("verifier")
            self._begin_verifier(verifier, actor).result()
            lessons = self._lessons(
                JudgementBatches, settings.reward_steps, lambda batch: [verifier.learn(batch)]
            )
            told = self._taught(verifier, lessons, "verifier/loss", "reward_warm_start")
            if told is None:
                return None
            self._leave(verifier, staged / "reward")
            metrics |= told
        return metrics

    def _begin_verifier(self, verifier: WorkerGroup, actor: Path) -> Future[object]:
        """Start from the policy where the shapes agree: what it expects to be written tells a wrong token."""
        if self._job.derived.reward_model.same_backbone(self._job.derived.actor_model):
            return verifier.load_backbone(str(actor))
        return verifier.create()

    def _leave(self, teacher: WorkerGroup, folder: Path) -> None:
        teacher.save_weights(str(folder)).result()
        self._workers.collect()
        teacher.release()

    def _lessons(
        self,
        kind: type[DemonstrationBatches] | type[JudgementBatches],
        steps: int,
        learn: Callable[[Any], list[Future[Metrics]]],
    ) -> Iterator[list[Future[Metrics]]]:
        """Learn from the task's own solutions, a step at each turn; nothing where there are none."""
        source, sequences = self._job.source, self._config.warm_start.sequences_per_step
        if steps == 0 or source.solution is None:
            return
        seed = self._config.run.seed
        batches = kind(source.train_prompts, source.solution, self._job.tokenizer, sequences, seed)
        for step in range(steps):
            yield learn(batches.at(step))

    def _taught(
        self, teacher: WorkerGroup, steps: Iterator[list[Future[Metrics]]], loss: str, stage: str
    ) -> dict[str, float] | None:
        """Run the steps; return their figures, None if a signal cut them short."""
        started, rows = time.monotonic(), []
        for futures in steps:
            rows.append({name: value for future in futures for name, value in future.result().items()})
            self._workers.collect()
            if len(rows) == 1:
                self._note_first(f"supervised step of the {teacher.role}")
            if self._stop.wished:
                return None
        if not rows:
            return {}
        seconds = time.monotonic() - started
        self._console.note(
            f"warm start of the {teacher.role}: {len(rows)} supervised steps in {seconds:.0f} s, "
            f"loss {rows[0][loss]:.3f} → {rows[-1][loss]:.3f}"
        )
        last = {name: value for name, value in rows[-1].items() if name.startswith(loss.partition("/")[0])}
        return last | {f"timing_s/{stage}": seconds}
