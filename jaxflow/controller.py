"""The run: brings the roles up, loops over steps, evaluates, saves, logs.

Knows no algorithm (a dataflow function is one step), no model and no Ray. Uses no device.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

from jaxflow.data.batches import PromptBatches, fixed_batch
from jaxflow.data.supervised_batches import SupervisedBatches, held_out_batch
from jaxflow.dataflow import PROMPTS, Dataflow, load_dataflow
from jaxflow.engine.batching import LENGTH_UNIT
from jaxflow.job import Job
from jaxflow.models.weights_in import ReadReport
from jaxflow.placement import CRITICS, readable_bytes
from jaxflow.run_directory import Checkpoint, RunDirectory
from jaxflow.stop import Stop
from jaxflow.tracking.console import Console
from jaxflow.tracking.metrics import (
    MetricsWriter,
    judge_metrics,
    offload_metrics,
    read_metrics,
    timing_metrics,
    validation_metrics,
)
from jaxflow.tracking.report import summary
from jaxflow.tracking.samples import SamplesWriter, pick_samples, with_costs
from jaxflow.tracking.timeline import Timeline
from jaxflow.types import Future, Prompts, Sample, Span, UserError
from jaxflow.warm_start import Beginning, WarmStart
from jaxflow.workers.group import WorkerGroup
from jaxflow.workers.launch import Workers
from jaxflow.workers.protocol import RoleError, WorkerLost
from jaxflow.workers.still import StillActor
from jaxflow.workers.weight_exchange import ServedActor

# That the calls around a failed one have to end; one in a broken collective never does.
_SETTLE_SECONDS = 10.0
_JUDGES = ("reward", "cost")
_SPANS_KEPT = 9  # last steps of which one is drawn in the summary


class Controller:
    """One run in one workdir."""

    def __init__(
        self,
        job: Job,
        directory: RunDirectory,
        workers: Workers,
        console: Console,
        stop: Stop,
        process_started: float,
    ):
        """Open the run's files; `process_started` is when this process began, on `time.monotonic`'s clock."""
        config = job.config
        self._config, self._job, self._directory = config, job, directory
        self._workers, self._console, self._stop = workers, console, stop
        self._metrics = MetricsWriter(directory.workdir, config.tracking.tensorboard, console.warn)
        self._samples = SamplesWriter(directory.workdir, console.warn)
        self._timeline = Timeline(
            directory.workdir / "timeline.json", config.tracking.timeline_steps, console.warn
        )
        self._spans: dict[int, list[Span]] = {}  # of the last steps
        self._dataflow = load_dataflow(config.algorithm.name)
        self._batches = batches_of(job, self._dataflow)
        self._devices = sum(pool.mesh.devices for pool in job.derived.pools.values())
        self._groups: dict[str, WorkerGroup | ServedActor] = {}
        self._process_started = process_started
        self._saved_at = time.monotonic()
        self._saved_steps: list[int] = []
        self._unlogged: dict[str, float] = {}  # figures that the next row of metrics takes along

    def run(self, checkpoint: Checkpoint | None) -> int:
        """Train from the checkpoint, or from the beginning, to the end, and return the exit code.

        0: done. 128 + signal number: asked to stop; what there was to save is saved.
        """
        started = time.time()
        with contextlib.closing(self._metrics), contextlib.closing(self._timeline):
            done = self._begin(checkpoint)
            if done is None:
                self._console.note("stopped in the warm start; the same --workdir begins it again")
                return self._stop.exit_code
            done = self._train(done)
            self._save(done)
        rows, kept = read_metrics(self._directory.metrics), self._saved_steps[-self._config.checkpoint.keep :]
        self._console.done(summary(rows, started, time.time(), self._directory.workdir, kept, self._spans))
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
                self._note_first(
                    "reinforcement-learning step" if self._dataflow.batches == PROMPTS else "step"
                )
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
        warm_start = WarmStart(
            self._job, self._directory, self._workers, self._console, self._stop, self._note_first
        )
        beginning = warm_start.run()
        if beginning is None:
            return None
        placed = {role for plan in self._job.derived.pools.values() for role in plan.roles}
        self._groups = {role: self._workers.group(role) for role in self._dataflow.playing(placed)}
        if "generator" in placed:
            self._groups["actor"] = ServedActor(self._groups["actor"], self._workers.group("generator"))
        done = 0 if checkpoint is None else checkpoint.step
        # Before the first step nothing is done: what was written of it is written again.
        kept = done if done > 0 else -1
        self._metrics.truncate_after(kept)
        self._samples.truncate_after(kept)
        if done == 0:
            self._unlogged |= beginning.metrics
        loads = list(self._frozen(beginning))
        if checkpoint is None:
            loads += self._first(beginning)
        else:
            loads += [group.restore(str(checkpoint.path / role)) for role, group in self._saved().items()]
            self._saved_steps.append(done)
        for load in loads:
            self._note_read([report for report in load.result() if report is not None])
        self._workers.collect()
        return done

    def _note_read(self, reports: Sequence[ReadReport]) -> None:
        """Say what reading a checkpoint took of each process of a role."""
        if not reports:
            return
        first, total = reports[0], sum(report.bytes_read for report in reports)
        buffer = max(report.largest_buffer_bytes for report in reports)
        seconds = max(report.seconds for report in reports)
        self._console.note(
            f"read {readable_bytes(total)} of {first.directory} in {seconds:.1f} s, at most"
            f" {readable_bytes(buffer)} at once on a host{''.join(f'; {note}' for note in first.notes)}"
        )

    def _saved(self) -> dict[str, WorkerGroup | ServedActor]:
        """Return the roles whose state decides the next step: what a checkpoint holds."""
        return {role: group for role, group in self._groups.items() if "save" in group.methods}

    def _frozen(self, beginning: Beginning) -> Iterator[Future[object]]:
        """Load the weights that no checkpoint holds, for they never change."""
        if "reference" in self._groups:
            yield self._groups["reference"].load(str(beginning.actor))
        kl = self._config.algorithm.kl
        if "actor" in self._groups and (kl.exact_in_rewards or kl.exact_in_loss):
            yield self._groups["actor"].load_reference(str(beginning.actor))
        if beginning.reward is not None:
            yield self._groups["reward"].load(str(beginning.reward))
        asked = "cost" in self._groups and "cost" not in self._dataflow.taught
        if asked and self._config.cost.kind == "model":
            yield self._groups["cost"].load(self._config.cost.weights)

    def _first(self, beginning: Beginning) -> Iterator[Future[object]]:
        """Load the weights that training begins from."""
        derived = self._job.derived
        if "actor" in self._groups:
            yield self._groups["actor"].load(str(beginning.actor))
        decoders = {"reward": derived.reward_model, "cost": derived.cost_model}
        for role in self._dataflow.taught:
            learner, weights = self._groups[role], vars(self._config)[role].weights
            if weights:
                yield learner.load(weights)
            elif beginning.actor is not None and decoders[role].same_backbone(derived.actor_model):
                yield learner.load_backbone(str(beginning.actor))
            else:
                yield learner.create()
        for critic in (self._groups[role] for role in CRITICS if role in self._groups):
            if self._config.critic.weights:
                yield critic.load(self._config.critic.weights)
            elif derived.critic_model.same_backbone(derived.actor_model):
                yield critic.load_backbone(str(beginning.actor))
            else:
                yield critic.create()

    def _note_first(self, kind: str) -> None:
        seconds = time.monotonic() - self._process_started
        self._console.note(f"first {kind} done {seconds:.1f} s after the start of this process")

    def _step(self, done: int) -> tuple[dict[str, float], float]:
        """Run one step of the dataflow; return its metrics and its seconds."""
        started, busy = time.perf_counter(), time.thread_time()
        self._workers.traffic.take()
        metrics: dict[str, float] = {}
        drawn = [self._batches.at(done)]
        try:
            batch, further = self._workers.put(drawn[0]), self._further_prompts(done, drawn)
            for future in self._dataflow(self._playing(done), batch, further):
                metrics |= future.result()
            metrics |= self._judge_figures() | self._generator_figures()
            calls = self._workers.collect()
        except RoleError as error:
            self._rescue(done, error)
            raise
        seconds = time.perf_counter() - started
        self._spans[done + 1] = [span for call in calls for span in call]
        self._spans.pop(done + 1 - _SPANS_KEPT, None)
        self._timeline.write(done + 1, self._spans[done + 1])
        prompt_tokens = sum(int(batch.lengths.sum()) for batch in drawn) / len(drawn)
        metrics |= offload_metrics(self._spans[done + 1])
        metrics |= self._timing([call[0] for call in calls], prompt_tokens, seconds)
        if len(drawn) > 1:
            metrics["training/refills"] = float(len(drawn) - 1)
        metrics["perf/controller_bytes"] = float(self._workers.traffic.take())
        metrics["perf/controller_seconds"] = time.thread_time() - busy
        rows = len(self._job.source.train)
        metrics["training/epoch"] = float(done * self._config.data.prompts_per_step // rows)
        return metrics, seconds

    def _playing(self, done: int) -> dict[str, WorkerGroup | ServedActor | StillActor]:
        """Return who plays after so many steps: as long as the critic warms up, an actor that learns nothing."""
        if done >= self._config.critic.warmup_steps:
            return self._groups
        return {**self._groups, "actor": StillActor(self._groups["actor"])}

    def _judge_figures(self) -> dict[str, float]:
        """Return what reward and cost have to tell of the step beside scores; a role of the user's may have nothing."""
        metrics: dict[str, float] = {}
        if self._dataflow.batches == PROMPTS:
            for role in _JUDGES:
                judge = self._groups.get(role)
                if judge is not None and "take_figures" in judge.methods:
                    metrics |= judge_metrics(role, judge.take_figures().result())
        return metrics

    def _generator_figures(self) -> dict[str, float]:
        """Return what generation on another pool came to; where the actor generates itself it says so itself."""
        actor = self._groups.get("actor")
        return actor.take_figures() if isinstance(actor, ServedActor) else {}

    def _further_prompts(self, done: int, drawn: list[Prompts]) -> Iterator[Future[Prompts]]:
        """Draw more prompts of a step, as long as someone asks and the config allows; note them in `drawn`."""
        refills = self._config.algorithm.dynamic_sampling.max_refills
        for refill in range(refills):
            drawn.append(self._batches.further(done, refill, refills))
            yield self._workers.put(drawn[-1])

    def _timing(self, calls: Sequence[Span], prompt_tokens: float, seconds: float) -> dict[str, float]:
        """Return the times of a step's stages and its speed; `prompt_tokens` are those of one rollout.

        Where nothing was generated, the tokens are those that most was done about.
        """
        stages: dict[str, float] = {"step": seconds}
        for call in calls:
            stages[call.name] = stages.get(call.name, 0.0) + call.seconds
        generated = [call for call in calls if call.name == "gen"]
        tokens = sum(call.tokens for call in generated)
        if not generated:
            tokens = max(call.tokens for call in calls)
            return timing_metrics(stages, tokens, 0.0, self._devices)
        rollouts = len(generated) // self._config.rollout.parts
        return timing_metrics(stages, tokens, tokens - rollouts * prompt_tokens, self._devices)

    def _rescue(self, done: int, error: RoleError) -> None:
        """Save the state before a failed step, if it had not begun to change it and all roles still are there."""
        if isinstance(error, WorkerLost) or not self._workers.settled(_SETTLE_SECONDS):
            return
        unchanged = error.method != "update" and not self._workers.any_succeeded("update")
        self._workers.calls.forget()
        if done > 0 and unchanged:
            with contextlib.suppress(RoleError):  # lost meanwhile: what was saved before is what there is
                self._try_to_save(done)

    def _evaluate_or_rescue(self, done: int, metrics: Mapping[str, float]) -> dict[str, float]:
        try:
            return self._evaluate(done)
        except RoleError as error:
            self._log(done, metrics)
            self._rescue(done, error)
            raise

    def _evaluate(self, step: int) -> dict[str, float]:
        """Measure what is held out, as the algorithm does, and answer its prompts where that can be judged."""
        if not self._job.source.validation:
            return {}
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        if self._dataflow.batches != PROMPTS:
            held_out = self._workers.put(held_out_batch(self._job.source.validation))
            for future in self._dataflow.measure(self._groups, held_out):
                metrics |= {f"val-core/{name}": value for name, value in future.result().items()}
        samples = self._answers(step) if self._dataflow.answers(self._groups) else ()
        self._workers.collect()
        several = self._config.rollout.validation_samples
        metrics |= validation_metrics(samples, several) | {"timing_s/testing": time.perf_counter() - started}
        self._console.evaluation(
            step, metrics, pick_samples(samples, self._config.tracking.samples_per_evaluation)
        )
        return metrics

    def _answers(self, step: int) -> Sequence[Sample]:
        """Answer the validation prompts; write the answers and return them judged."""
        samples = self._config.rollout.validation_samples
        prompts = fixed_batch(self._job.source.validation_prompts, samples, LENGTH_UNIT, step)
        rollout = self._groups["actor"].generate_validation(prompts)
        judged = self._groups["reward"].judge_validation(rollout, prompts).result()
        cost = self._groups.get("cost")
        if cost is not None and "judge_validation" in cost.methods:
            judged = with_costs(judged, cost.judge_validation(rollout, prompts).result())
        self._samples.write(judged)
        return judged

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
        for saving in [group.save(str(folder / role)) for role, group in self._saved().items()]:
            saving.result()
        self._workers.collect()
        state = {"seed": self._config.run.seed, "tokenizer": self._job.tokenizer.identity}
        self._directory.commit(done, state)
        self._saved_steps.append(done)
        self._saved_at = time.monotonic()
        self._unlogged["timing_s/save_checkpoint"] = self._saved_at - started


def batches_of(job: Job, dataflow: Dataflow) -> PromptBatches | SupervisedBatches:
    """Lay out the batches of every step, of the kind that the algorithm is given.

    Raises:
      UserError: there are fewer rows than one step takes.
    """
    data, seed = job.config.data, job.config.run.seed
    if dataflow.batches != PROMPTS:
        if len(job.source.train) < data.prompts_per_step:
            raise UserError(
                f"{len(job.source.train):,} rows are fewer than the {data.prompts_per_step:,} of one step; lower"
                " data.prompts_per_step or add rows"
            )
        return SupervisedBatches(job.source.train, data.prompts_per_step, data.shuffle, seed)
    samples = job.config.rollout.samples_per_prompt
    return PromptBatches(job.source.train, data.prompts_per_step, samples, data.shuffle, seed, LENGTH_UNIT)
