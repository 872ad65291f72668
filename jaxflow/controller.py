"""The run: brings the roles up, loops over steps, evaluates, saves, logs.

Knows no algorithm (a dataflow function is one step), no model and no Ray. Uses no device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.data.batches import DemonstrationBatches, PromptBatches, fixed_batch
from jaxflow.data.source import Source
from jaxflow.data.tokenizer import Tokenizer
from jaxflow.dataflow import DATAFLOWS
from jaxflow.dataflow.roles import Roles
from jaxflow.dataflow.sft import sft
from jaxflow.engine.batching import LENGTH_UNIT
from jaxflow.run_directory import Checkpoint, RunDirectory
from jaxflow.stop import Stop
from jaxflow.tracking.console import Console
from jaxflow.tracking.metrics import MetricsWriter, read_metrics, timing_metrics, validation_metrics
from jaxflow.tracking.report import summary
from jaxflow.tracking.samples import SamplesWriter, pick_samples
from jaxflow.types import Future, UserError
from jaxflow.workers.future import CallList
from jaxflow.workers.group import Transport, WorkerGroup
from jaxflow.workers.protocol import RoleError

# Roles whose state decides the next step: what a checkpoint holds.
_SAVED = ("actor", "critic", "estimator")
_WARM_START = "warm_start.json"  # beside the initial weights: what the first row of metrics says of it


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run is made of once its config is checked and its data read."""

    config: Config
    derived: Derived
    tokenizer: Tokenizer
    source: Source


class Controller:
    """One run in one workdir."""

    def __init__(
        self,
        job: Job,
        directory: RunDirectory,
        transport: Transport,
        calls: CallList,
        console: Console,
        stop: Stop,
        process_started: float,
    ):
        """Open the run's files; `process_started` is when this process began, on `time.monotonic`'s clock."""
        config = job.config
        self._config, self._job, self._directory = config, job, directory
        self._transport, self._calls, self._console, self._stop = transport, calls, console, stop
        self._metrics = MetricsWriter(directory.workdir, config.tracking.tensorboard, console.warn)
        self._samples = SamplesWriter(directory.workdir, console.warn)
        self._batches = PromptBatches(
            job.source.train,
            config.data.prompts_per_step,
            config.rollout.samples_per_prompt,
            config.data.shuffle,
            config.run.seed,
            LENGTH_UNIT,
        )
        self._dataflow = DATAFLOWS[config.algorithm.name]
        self._groups: dict[str, WorkerGroup] = {}
        self._process_started = process_started
        self._saved_at = time.monotonic()
        self._saved_steps: list[int] = []
        self._unlogged: dict[str, float] = {}  # figures that the next row of metrics takes along

    def run(self, checkpoint: Checkpoint | None) -> int:
        """Train from the checkpoint, or from the beginning, to the end, and return the exit code.

        0: done. 128 + signal number: asked to stop; what there was to save is saved.
        """
        started = time.time()
        with contextlib.closing(self._metrics):
            done = self._begin(checkpoint)
            if done is None:
                self._console.note("stopped in the warm start; the same --workdir begins it again")
                return self._stop.exit_code
            done = self._train(done)
            self._save(done)
        rows, kept = read_metrics(self._directory.metrics), self._saved_steps[-self._config.checkpoint.keep :]
        self._console.done(summary(rows, started, time.time(), self._directory.workdir, kept))
        if self._stop.wished:
            total = self._config.run.total_steps
            self._console.note(f"stopped after step {done} of {total}; the same --workdir continues")
        return self._stop.exit_code

    def _train(self, done: int) -> int:
        """Run steps until the end or a signal; return the number of steps done."""
        run = self._config.run
        if done == 0 and run.evaluate_before:
            self._log(0, self._evaluate(0))
        self._console.begin(done)
        first = done
        while done < run.total_steps and not self._stop.wished:
            metrics, seconds = self._step(done)
            done += 1
            self._console.step(done, metrics, seconds)
            if done == first + 1:
                self._note_first("reinforcement-learning")
            every = run.evaluate_every_steps
            last = done == run.total_steps
            if (every > 0 and done % every == 0) or (last and run.evaluate_after):
                metrics = metrics | self._evaluate_or_rescue(done, metrics)
            # Logged before saved: a kill in between repeats the step, and resuming drops its first row.
            self._log(done, metrics)
            if self._save_due(done):
                self._try_to_save(done)
        return done

    def _begin(self, checkpoint: Checkpoint | None) -> int | None:
        """Bring every role to its first or its saved state; return the steps done, None if stopped before."""
        weights = self._initial_weights()
        if weights is None:
            return None
        for role in ("actor", "critic", "reference", "reward", "estimator"):
            self._groups[role] = WorkerGroup(role, self._transport)
        done = 0 if checkpoint is None else checkpoint.step
        # Before the first step nothing is done: what was written of it is written again.
        kept = done if done > 0 else -1
        self._metrics.truncate_after(kept)
        self._samples.truncate_after(kept)
        if done == 0:
            self._unlogged |= self._warm_start_metrics()
        loads = [self._groups["reference"].load(str(weights))]
        if checkpoint is None:
            loads += [self._groups["actor"].load(str(weights)), self._load_critic(weights)]
        else:
            loads += [self._groups[role].restore(str(checkpoint.path / role)) for role in _SAVED]
            self._saved_steps.append(done)
        for load in loads:
            load.result()
        self._calls.collect()
        return done

    def _load_critic(self, actor_weights: Path) -> Future[None]:
        critic, derived = self._groups["critic"], self._job.derived
        if self._config.critic.weights:
            return critic.load(self._config.critic.weights)
        if derived.critic_model.same_backbone(derived.actor_model):
            return critic.load_backbone(str(actor_weights))
        return critic.create()

    def _initial_weights(self) -> Path | None:
        """Return the folder of the weights that actor and reference start from, made if need be.

        None if a signal came before the warm start was over.
        """
        if self._config.actor.weights:
            return Path(self._config.actor.weights)
        if self._directory.initial() is None:
            student = WorkerGroup("student", self._transport)
            student.create().result()
            metrics = self._warm_start(student)
            if metrics is None:
                return None
            staged = self._directory.stage_initial()
            student.save_weights(str(staged / "actor")).result()
            (staged / _WARM_START).write_text(json.dumps(metrics))
            self._calls.collect()
            self._directory.commit_initial()
            student.release()
        folder = self._directory.initial()
        return None if folder is None else folder / "actor"

    def _warm_start_metrics(self) -> dict[str, float]:
        """Return what the warm start, in this process or an earlier one, left for the first row."""
        folder = self._directory.initial()
        return {} if folder is None else json.loads((folder / _WARM_START).read_text())

    def _warm_start(self, student: WorkerGroup) -> dict[str, float] | None:
        """Imitate the task's own solutions; return its figures, None if a signal cut it short."""
        settings, source = self._config.warm_start, self._job.source
        if settings.steps == 0 or source.solution is None:
            return {}
        demonstrations = DemonstrationBatches(
            source.train,
            source.solution,
            self._job.tokenizer,
            settings.sequences_per_step,
            self._config.run.seed,
        )
        started, losses = time.monotonic(), []
        for step in range(settings.steps):
            for future in sft(student, demonstrations.at(step)):
                losses.append(future.result()["sft/loss"])
            self._calls.collect()
            if step == 0:
                self._note_first("supervised")
            if self._stop.wished:
                return None
        seconds = time.monotonic() - started
        self._console.note(
            f"warm start: {settings.steps} supervised steps in {seconds:.0f} s, "
            f"loss {losses[0]:.3f} → {losses[-1]:.3f}"
        )
        return {"sft/loss": losses[-1], "timing_s/warm_start": seconds}

    def _note_first(self, kind: str) -> None:
        seconds = time.monotonic() - self._process_started
        self._console.note(f"first {kind} step done {seconds:.1f} s after the start of this process")

    def _step(self, done: int) -> tuple[dict[str, float], float]:
        """Run one step of the dataflow; return its metrics and its seconds."""
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        try:
            for future in self._dataflow(self._roles(), self._batches.at(done)):
                metrics |= future.result()
        except RoleError as error:
            self._rescue(done, error)
            raise
        seconds = time.perf_counter() - started
        stages: dict[str, float] = {"step": seconds}
        for record in self._calls.collect():
            stages[record.stage] = stages.get(record.stage, 0.0) + record.seconds
        responses = int(metrics["response_length/mean"] * self._job.derived.sequences_per_step)
        tokens = int(metrics["perf/total_num_tokens"])
        metrics |= timing_metrics(stages, tokens, responses, self._config.cluster.devices)
        metrics["training/epoch"] = float(
            done * self._config.data.prompts_per_step // len(self._job.source.train)
        )
        return metrics, seconds

    def _roles(self) -> Roles:
        return Roles(**self._groups)

    def _rescue(self, done: int, error: RoleError) -> None:
        """Save the state before a failed step, if it had not begun to change it and there still is one."""
        unchanged = error.method != "update" and not self._calls.any_succeeded("update")
        self._calls.forget()
        if done > 0 and unchanged:
            with contextlib.suppress(
                RoleError
            ):  # the process is gone: what was saved before is what there is
                self._try_to_save(done)

    def _evaluate_or_rescue(self, done: int, metrics: Mapping[str, float]) -> dict[str, float]:
        try:
            return self._evaluate(done)
        except RoleError as error:
            self._log(done, metrics)
            self._rescue(done, error)
            raise

    def _evaluate(self, step: int) -> dict[str, float]:
        """Answer the validation prompts; write, show and summarise the answers."""
        if not self._job.source.validation:
            return {}
        started = time.perf_counter()
        prompts = fixed_batch(self._job.source.validation, LENGTH_UNIT, step)
        rollout = self._groups["actor"].generate_validation(prompts)
        samples = self._groups["reward"].judge_validation(rollout, prompts).result()
        self._calls.collect()
        metrics = validation_metrics(samples) | {"timing_s/testing": time.perf_counter() - started}
        self._samples.write(samples)
        shown = pick_samples(samples, self._config.tracking.samples_per_evaluation)
        self._console.evaluation(step, metrics, shown)
        return metrics

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._metrics.write(step, {**self._unlogged, **metrics})
        self._unlogged = {}

    def _save_due(self, done: int) -> bool:
        settings = self._config.checkpoint
        by_steps = settings.every_steps > 0 and done % settings.every_steps == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        return by_steps or (settings.every_minutes > 0 and minutes >= settings.every_minutes)

    def _try_to_save(self, done: int) -> None:
        """Save; where that is refused (a full disk), warn and train on: the checkpoints before are whole."""
        try:
            self._save(done)
        except UserError as error:
            self._saved_at = time.monotonic()
            self._console.warn(f"no checkpoint of step {done}: {error}")

    def _save(self, done: int) -> None:
        """Write all state that decides the next step, unless it is written already."""
        if done in self._saved_steps:
            return
        started = time.monotonic()
        folder = self._directory.stage(done)
        for saving in [self._groups[role].save(str(folder / role)) for role in _SAVED]:
            saving.result()
        self._calls.collect()
        state = {"seed": self._config.run.seed, "tokenizer": self._job.tokenizer.identity}
        self._directory.commit(done, state)
        self._saved_steps.append(done)
        self._saved_at = time.monotonic()
        self._unlogged["timing_s/save_checkpoint"] = self._saved_at - started
