"""Where a run stands, as lines of text.

Knows no terminal and no clock: the present moment is an argument, in seconds of a clock that never goes back.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence

from jaxflow.tracking.text import duration, figure, stage_words
from jaxflow.types import Metrics

HEARTBEAT_SECONDS = 30.0  # silence after which a plain log says that a stage still runs
_RECENT_STEPS = 20  # steps that the time to go is estimated from

# The few metrics worth a line, in the order shown; one that a run does not have is left out.
_HEADLINE = {
    "score": "critic/score/mean",
    "accuracy": "reward/accuracy_mean",
    "KL": "actor/reward_kl_penalty",
    "length": "response_length/mean",
    "loss": "actor/pg_loss",
    "imitation loss": "sft/loss",
    "ranked right": "reward_model/accuracy",
    "costs ranked right": "cost_model/accuracy",
    "preferred right": "dpo/accuracy",
    "wanted right": "kto/accuracy",
    "grad norm": "actor/grad_norm",
    "tokens/s/device": "perf/throughput",
}


def seconds_to_go(step_seconds: Sequence[float], steps_left: int) -> float | None:
    """Estimates the time left: median of the given step times × steps left; None before the first step.

    The median, because steps that compile or wait for a disk are few and long.
    """
    if len(step_seconds) == 0:
        return None
    return statistics.median(step_seconds) * steps_left


def headline(metrics: Metrics) -> str:
    """Writes the metrics worth watching, `score 0.31 · KL 0.002 · …`."""
    return " · ".join(
        f"{label} {figure(metrics[name])}" for label, name in _HEADLINE.items() if name in metrics
    )


class Progress:
    """Stage, step and time left of a run."""

    def __init__(self, total_steps: int):
        self._total_steps = total_steps
        self._steps_done = 0
        self._stage: str | None = None
        self._stage_started = 0.0
        self._silent_since = 0.0
        self._step_seconds: collections.deque[float] = collections.deque(maxlen=_RECENT_STEPS)
        self._headline = ""

    def begin(self, steps_done: int) -> None:
        """Sets the steps that a resumed run has behind it."""
        self._steps_done = steps_done

    def enter(self, stage: str | None, now: float) -> None:
        """Sets what runs from now on; None: nothing worth naming."""
        self._stage = stage
        self._stage_started = self._silent_since = now

    def finish_step(self, step: int, metrics: Metrics, seconds: float) -> str:
        """Takes note of a finished step and returns its line."""
        self._steps_done = step
        self._step_seconds.append(seconds)
        self._headline = headline(metrics)
        parts = [f"step {step}/{self._total_steps}", duration(seconds), self._eta(), self._headline]
        return " · ".join(part for part in parts if part)

    def live_line(self, now: float) -> str:
        """Returns the line that stands at the bottom of a terminal."""
        stage = (
            "" if self._stage is None else f"{stage_words(self._stage)} {duration(now - self._stage_started)}"
        )
        parts = [stage, self._position(), self._eta(), self._headline]
        return " · ".join(part for part in parts if part)

    def heartbeat(self, now: float) -> str | None:
        """Returns a sign of life where the stage has been silent for long, once per silence; else None."""
        if self._stage is None or now - self._silent_since < HEARTBEAT_SECONDS:
            return None
        self._silent_since = now
        return f"{stage_words(self._stage)}, {duration(now - self._stage_started)}; {self._position()}"

    def _position(self) -> str:
        return f"step {min(self._steps_done + 1, self._total_steps)}/{self._total_steps}"

    def _eta(self) -> str:
        steps_left = self._total_steps - self._steps_done
        seconds = seconds_to_go(self._step_seconds, steps_left)
        return "" if seconds is None or steps_left == 0 else f"ETA {duration(seconds)}"
