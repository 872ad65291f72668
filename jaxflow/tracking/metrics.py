"""Scalars of a run: metrics.jsonl, TensorBoard, and the names under which validation and timing go there.

Knows no model and no algorithm; it is given plain numbers. Names follow verl, so that its users'
dashboards work.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxflow.tracking.jsonl import DiskGuard, JsonLines, read_rows
from jaxflow.types import OFFLOAD_SPAN, Metrics, RewardFigures, Sample, Span

if TYPE_CHECKING:
    from jaxflow.tracking.tensorboard import TensorBoard

FILE_NAME = "metrics.jsonl"
GLOBAL_STEP = "training/global_step"

# Stages whose time grows with the tokens of prompts and responses; generation is paid per response token.
_STAGES_PER_TOKEN = (
    "old_log_prob",
    "ref",
    "values",
    "adv",
    "update_critic",
    "update_actor",
    "update_reward",
    "update_cost",
)


class MetricsWriter:
    """Writes one row per step to metrics.jsonl and the same scalars to TensorBoard.

    NaN and infinities are null in metrics.jsonl and themselves in TensorBoard. Errors of the disk are warned
    of once and counted in `failures`; they never reach the caller.
    """

    def __init__(self, workdir: Path, tensorboard: bool, warn: Callable[[str], None]):
        self._lines = JsonLines(workdir / FILE_NAME, GLOBAL_STEP)
        self._tensorboard_directory = workdir / "tensorboard"
        self._tensorboard: TensorBoard | None = None
        if tensorboard:
            # Not before it is wanted: its library imports torch where that is installed, which takes a second.
            from jaxflow.tracking.tensorboard import TensorBoard

            self._tensorboard = TensorBoard(self._tensorboard_directory)
        self._guard = DiskGuard(warn)
        with self._guard.writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)

    @property
    def failures(self) -> int:
        """Counts the writes that did not reach the disk."""
        return self._guard.failures

    def write(self, step: int, metrics: Metrics) -> None:
        """Appends the step's row, its names sorted; it has left this process on return."""
        scalars = {name: float(metrics[name]) for name in sorted(metrics) if name != GLOBAL_STEP}
        with self._guard.writing(self._lines.path):
            self._lines.append([{GLOBAL_STEP: step, **scalars}])
        if self._tensorboard is not None:
            with self._guard.writing(self._tensorboard_directory):
                self._tensorboard.write(step, scalars)

    def truncate_after(self, step: int) -> None:
        """Drops rows of steps after `step`, so that a resumed run leaves the file of an uninterrupted one."""
        with self._guard.writing(self._lines.path):
            self._lines.truncate_after(step)
        if self._tensorboard is not None:
            self._tensorboard.truncate_after(step)

    def close(self) -> None:
        """Closes the TensorBoard file; metrics.jsonl is never held open."""
        if self._tensorboard is not None:
            with self._guard.writing(self._tensorboard_directory):
                self._tensorboard.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads the rows of a metrics.jsonl; null becomes NaN, a half-written last line is left out.

    Raises:
        UserError: the file is missing, or a line before the last is not a JSON object.
    """
    return [
        {name: math.nan if value is None else value for name, value in row.items()} for row in read_rows(path)
    ]


def validation_metrics(samples: Sequence[Sample], samples_per_prompt: int) -> dict[str, float]:
    """Averages validation answers per data source, and over all rows as source `all`; nothing without samples.

    Returns `val-core/{source}/acc|reward/mean@n` for n answers to each prompt, `val-aux/{source}/finished/mean@n` (the
    share that ended by itself), `val-aux/{source}/{name}/mean@n` of each further number that judging told, over the
    rows it was told of, and `val-aux/{source}/rows`. With several answers also, of each measure:
      best@k/mean, worst@k/mean  for k = 2, 4, … and n: the best and the worst of k, in the mean over all choices of k;
                                 of right and wrong answers best@k is pass@k (Chen et al., arXiv:2107.03374)
      std@n                      sample deviation within a prompt
      maj@n/mean                 of the answer that most agree on, the first of equals; where the reward told what it
                                 read in every answer
    Figures of k < n, the worst and the deviation are `val-aux/`.

    Args:
        samples: the answers to a prompt in a run.
        samples_per_prompt: n.
    """
    groups = [
        samples[start : start + samples_per_prompt] for start in range(0, len(samples), samples_per_prompt)
    ]
    sources: dict[str, list[Sequence[Sample]]] = {}
    for name in sorted({group[0].data_source for group in groups}):
        sources[name] = [group for group in groups if group[0].data_source == name]
    if groups:
        sources["all"] = groups
    metrics = {}
    for source, prompts in sources.items():
        rows = [row for group in prompts for row in group]
        for measure, values in (
            ("acc", [row.accuracy for row in rows]),
            ("reward", [row.score for row in rows]),
        ):
            metrics[f"val-core/{source}/{measure}/mean@{samples_per_prompt}"] = float(np.mean(values))
            if samples_per_prompt > 1:
                table = np.array(values).reshape(len(prompts), -1)
                metrics |= _several(f"{source}/{measure}", table)
                metrics |= _majority(f"val-core/{source}/{measure}", prompts, table)
        finished = float(np.mean([row.finished for row in rows]))
        metrics[f"val-aux/{source}/finished/mean@{samples_per_prompt}"] = finished
        metrics[f"val-aux/{source}/rows"] = float(len(rows))
        for name in sorted({name for row in rows for name in row.numbers}):
            told = [row.numbers[name] for row in rows if name in row.numbers]
            metrics[f"val-aux/{source}/{name}/mean@{samples_per_prompt}"] = float(np.mean(told))
    return metrics


def _several(name: str, values: Float[np.ndarray, "P n"]) -> dict[str, float]:
    """Describes what n answers to each prompt come to together."""
    ordered, n = np.sort(values, axis=1), values.shape[1]
    metrics = {f"val-aux/{name}/std@{n}": float(np.mean(np.std(values, axis=1, ddof=1)))}
    for k in [*(2**power for power in range(1, (n - 1).bit_length())), n]:
        # The i-th smallest is the largest of k that were drawn in C(i − 1, k − 1) of C(n, k) cases.
        share = np.array([math.comb(i, k - 1) for i in range(n)]) / math.comb(n, k)
        kind = "core" if k == n else "aux"
        metrics[f"val-{kind}/{name}/best@{k}/mean"] = float(np.mean(ordered @ share))
        metrics[f"val-aux/{name}/worst@{k}/mean"] = float(np.mean(ordered @ share[::-1]))
    return metrics


def _majority(
    name: str, prompts: Sequence[Sequence[Sample]], values: Float[np.ndarray, "P n"]
) -> dict[str, float]:
    """Says what the answers are worth that most agree on; nothing where some answer was not read."""
    if any(row.prediction is None for group in prompts for row in group):
        return {}
    worths = []
    for group, worth in zip(prompts, values, strict=True):
        answers = [row.prediction for row in group]
        (most, _), *_ = collections.Counter(answers).most_common()
        worths.append(worth[answers.index(most)])
    return {f"{name}/maj@{values.shape[1]}/mean": float(np.mean(worths))}


def judge_metrics(role: str, parts: Sequence[RewardFigures]) -> dict[str, float]:
    """Names what judging a step's responses came to, from what each process of the judge's pool saw.

    Returns `{role}/errors`, `{role}/timeouts` and `{role}/crashes`, the rows without a verdict by reason, and
    `{role}/{name}/mean` for each number that the judge told beside score and accuracy, over the rows that told it.
    """
    first = parts[0]  # each saw the failures of all
    metrics = {
        f"{role}/errors": float(first.errors),
        f"{role}/timeouts": float(first.timeouts),
        f"{role}/crashes": float(first.crashes),
    }
    for name in sorted({name for part in parts for name in part.sums}):
        rows = sum(part.counts.get(name, 0) for part in parts)
        metrics[f"{role}/{name}/mean"] = sum(part.sums.get(name, 0.0) for part in parts) / rows
    return metrics


def offload_metrics(spans: Sequence[Span]) -> dict[str, float]:
    """Sums a step's moves between host memory and devices: seconds, and bytes of the busiest device of each move.

    Returns `offload/seconds` and `offload/bytes_per_device`; nothing where nothing waits in host memory.
    """
    moves = [span for span in spans if span.name == OFFLOAD_SPAN]
    if not moves:
        return {}
    seconds, moved = sum(span.seconds for span in moves), sum(span.bytes for span in moves)
    return {"offload/seconds": seconds, "offload/bytes_per_device": float(moved)}


def timing_metrics(
    seconds: Mapping[str, float], tokens: int, response_tokens: int, devices: int
) -> dict[str, float]:
    """Names the times of one step and derives speed from them.

    Args:
        seconds: wall seconds of each stage, and of the whole step as `step`.
        tokens: prompt and response tokens of the step, over all devices; no padding.
        response_tokens: generated tokens of the step.
        devices: devices of the pool.

    Returns:
        `timing_s/*`, `timing_per_token_ms/*` (generation by response tokens, other stages by all tokens),
        `perf/time_per_step` (s), `perf/total_num_tokens`, `perf/throughput` (tokens per second and device).
    """
    metrics = {f"timing_s/{stage}": float(value) for stage, value in seconds.items()}
    divisors = {"gen": response_tokens, **dict.fromkeys(_STAGES_PER_TOKEN, tokens)}
    for stage, count in divisors.items():
        if stage in seconds and count > 0:
            metrics[f"timing_per_token_ms/{stage}"] = 1000.0 * seconds[stage] / count
    metrics["perf/time_per_step"] = float(seconds["step"])
    metrics["perf/total_num_tokens"] = float(tokens)
    metrics["perf/throughput"] = tokens / seconds["step"] / devices
    return metrics
