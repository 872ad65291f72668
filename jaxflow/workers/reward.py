"""The role that judges responses by their text.

Knows the config, text and arrays; knows neither processes nor transport. Arguments and results are host arrays.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
from jaxtyping import Float

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config, RewardConfig
from jaxflow.data.source import load_tokenizer
from jaxflow.engine.mesh import AXES
from jaxflow.engine.rows import Rows
from jaxflow.rewards.overlong import overlong_penalty
from jaxflow.rewards.scoring import REASONS, ScoredRows, score_rows
from jaxflow.types import Prompts, RewardFigures, Rollout, Sample, Scores, UserError
from jaxflow.workers.judge import choose_judge
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.transfer import DP_PROTO, ONE_TO_ALL


class Reward:
    """Judges responses with a function of their text."""

    _section = "reward"  # of the config: whose keys it follows

    def __init__(self, config: Config, derived: Derived, place: Place):
        self._config: RewardConfig = vars(config)[self._section]
        self._component_keys = tuple(config.algorithm.gdpo.weights)
        self._max_response_tokens = config.rollout.max_response_tokens
        self._rows = self._split(place)
        self._tokenizer = load_tokenizer(config.data.task, config.data.tokenizer)
        self._judge = choose_judge(self._config, bool(config.data.train_files))
        self._failures: collections.Counter[str] = collections.Counter()
        self._sums: collections.Counter[str] = collections.Counter()
        self._counts: collections.Counter[str] = collections.Counter()

    def _split(self, place: Place) -> Rows:
        """Return how rows are cut between the processes: a function of text works on each device's own."""
        return Rows(place.mesh, AXES)

    def _worth(self, rollout: Rollout, told: Scores) -> Float[np.ndarray, "B"]:
        """Return what the responses are worth before any penalty: what the function said."""
        return told.scores

    def _judged(self, rollout: Rollout, prompts: Prompts) -> tuple[ScoredRows, list[str]]:
        """Return scores and texts; stop the run where the function fails too often."""
        responses = [
            self._tokenizer.decode(tokens[mask].tolist())
            for tokens, mask in zip(rollout.tokens, rollout.response_mask, strict=True)
        ]
        scored = score_rows(self._judge, responses, prompts.rows, self._config.fallback_score)
        # Of all rows, whoever judged them; said by a process that has a failure to show.
        reasons = self._rows.gather(scored.reasons)
        failed = float(np.mean(reasons > 0))
        key = f"{self._section}.max_failed_fraction"
        if failed > self._config.max_failed_fraction and scored.first_failure is not None:
            raise UserError(
                f"{self._section}: the function failed on {failed:.0%} of the rows, more than {key} "
                f"({self._config.max_failed_fraction:.0%}); the first failure: {scored.first_failure}"
            )
        scores = dataclasses.replace(
            scored.scores, scores=self._worth(rollout, scored.scores), components=self._components(scored)
        )
        return dataclasses.replace(scored, scores=scores, reasons=reasons), responses

    def _components(self, scored: ScoredRows) -> Float[np.ndarray, "B K"] | None:
        """Return the numbers that the algorithm weighs one by one; of a failed row they are the fallback score."""
        keys = self._component_keys
        if not keys:
            return None
        table = np.full((len(scored.numbers), len(keys)), self._config.fallback_score, np.float32)
        for row in np.flatnonzero(~scored.scores.failed):
            numbers = scored.numbers[row]
            missing = [key for key in keys if key not in numbers]
            if missing:
                raise UserError(
                    f"algorithm.gdpo.components asks for {', '.join(missing)}, and the reward function returned"
                    f" {', '.join(numbers) or 'nothing'} beside the score"
                )
            table[row] = [numbers[key] for key in keys]
        return table

    def _penalty(self, rollout: Rollout, failed: np.ndarray) -> Float[np.ndarray, "B"]:
        """Return what is added for length; nothing to a failed row, whose score is the fallback."""
        if self._config.manager != "dapo":
            return np.zeros(len(failed), np.float32)
        penalty = overlong_penalty(
            rollout.response_mask.sum(axis=1),
            self._max_response_tokens,
            self._config.overlong_buffer_tokens,
            self._config.overlong_penalty_factor,
        )
        return np.where(failed, np.float32(0), penalty)

    @exposed("reward", DP_PROTO, by_parts=True)
    def score(self, rollout: Rollout, prompts: Prompts) -> Scores:
        """Score each response."""
        scored, _ = self._judged(rollout, prompts)
        penalty = self._penalty(rollout, scored.scores.failed)
        self._note(scored, penalty)
        return dataclasses.replace(scored.scores, scores=scored.scores.scores + penalty)

    def _note(self, scored: ScoredRows, penalty: np.ndarray) -> None:
        """Add up what the step's figures are made of."""
        for number, reason in enumerate(REASONS, start=1):
            self._failures[reason] += int(np.sum(scored.reasons == number))
        named = list(scored.numbers)
        if self._config.manager == "dapo":
            named += [{"overlong_penalty": float(one)} for one in penalty]
        for numbers in named:
            self._sums.update(numbers)
            self._counts.update(dict.fromkeys(numbers, 1))

    @exposed("reward", ONE_TO_ALL)
    def take_figures(self) -> RewardFigures:
        """Return what was noted while scoring since the last time."""
        errors, timeouts, crashes = (self._failures[reason] for reason in REASONS)
        figures = RewardFigures(errors, timeouts, crashes, dict(self._sums), dict(self._counts))
        for counter in (self._failures, self._sums, self._counts):
            counter.clear()
        return figures

    @exposed("testing", DP_PROTO)
    def judge_validation(self, rollout: Rollout, prompts: Prompts) -> tuple[Sample, ...]:
        """Score each response, its length not punished, and return it as text."""
        scored, responses = self._judged(rollout, prompts)
        return tuple(
            Sample(
                step=prompts.step,
                data_source=row.data_source,
                prompt=row.prompt,
                response=response,
                ground_truth=str(row.ground_truth),
                score=float(scored.scores.scores[i]),
                accuracy=float(scored.scores.accuracy[i]),
                finished=bool(rollout.finished[i]),
                numbers=scored.numbers[i],
                prediction=scored.predictions[i],
            )
            for i, (row, response) in enumerate(zip(prompts.rows, responses, strict=True))
        )
