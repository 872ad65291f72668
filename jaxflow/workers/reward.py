"""The role that judges responses by their text.

Knows the config, text and arrays; knows neither processes nor transport. Arguments and results are host arrays.
"""

from __future__ import annotations

import numpy as np

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.data.source import load_tokenizer
from jaxflow.engine.mesh import AXES
from jaxflow.engine.rows import Rows
from jaxflow.rewards.function import exact_match, load_reward_function
from jaxflow.rewards.scoring import score_rows
from jaxflow.types import Prompts, Rollout, Sample, Scores, UserError
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.transfer import DP_PROTO


class Reward:
    """Judges responses with a function of their text."""

    def __init__(self, config: Config, derived: Derived, place: Place):
        self._config = config.reward
        self._rows = self._split(place)
        self._tokenizer = load_tokenizer(config.data.task, config.data.tokenizer)
        function = config.reward.function
        self._function = load_reward_function(function) if function else exact_match

    def _split(self, place: Place) -> Rows:
        """Return how rows are cut between the processes: a function of text works on each device's own."""
        return Rows(place.mesh, AXES)

    def _judge(self, rollout: Rollout, prompts: Prompts) -> tuple[Scores, list[str]]:
        responses = [
            self._tokenizer.decode(tokens[mask].tolist())
            for tokens, mask in zip(rollout.tokens, rollout.response_mask, strict=True)
        ]
        scored = score_rows(self._function, responses, prompts.rows, self._config.fallback_score)
        # Of all rows, whoever judged them; said by a process that has a failure to show.
        failed = float(np.mean(self._rows.gather(scored.scores.failed)))
        if failed > self._config.max_failed_fraction and scored.first_failure is not None:
            raise UserError(
                f"the reward function failed on {failed:.0%} of the rows, more than reward.max_failed_fraction "
                f"({self._config.max_failed_fraction:.0%}); the first failure: {scored.first_failure}"
            )
        return scored.scores, responses

    @exposed("reward", DP_PROTO, by_parts=True)
    def score(self, rollout: Rollout, prompts: Prompts) -> Scores:
        """Score each response."""
        return self._judge(rollout, prompts)[0]

    @exposed("testing", DP_PROTO)
    def judge_validation(self, rollout: Rollout, prompts: Prompts) -> tuple[Sample, ...]:
        """Score each response and return it as text."""
        scores, responses = self._judge(rollout, prompts)
        return tuple(
            Sample(
                step=prompts.step,
                data_source=row.data_source,
                prompt=row.prompt,
                response=response,
                ground_truth=str(row.ground_truth),
                score=float(scores.scores[i]),
                accuracy=float(scores.accuracy[i]),
                finished=bool(rollout.finished[i]),
            )
            for i, (row, response) in enumerate(zip(prompts.rows, responses, strict=True))
        )
