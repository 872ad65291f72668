"""The roles that hold no model: what judges responses, and the numeric part of the algorithm.

Knows the config, text and arrays; knows neither processes nor transport. Arguments and results are host arrays.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxflow.algorithms.experience import PPOEstimator
from jaxflow.algorithms.kl import adapt_coefficient
from jaxflow.algorithms.statistics import experience_statistics
from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.data.source import load_tokenizer
from jaxflow.rewards.function import exact_match, load_reward_function
from jaxflow.rewards.scoring import score_rows
from jaxflow.types import Experience, Metrics, Prompts, Rollout, Sample, Scores, TokenLogProbs, UserError
from jaxflow.workers.protocol import exposed


class Reward:
    """Judges responses with a function of their text."""

    def __init__(self, config: Config, derived: Derived, mesh: Mesh):
        self._config = config.reward
        self._tokenizer = load_tokenizer(config.data.task, config.data.tokenizer)
        place = config.reward.function
        self._function = load_reward_function(place) if place else exact_match

    def _judge(self, rollout: Rollout, prompts: Prompts) -> tuple[Scores, list[str]]:
        responses = [
            self._tokenizer.decode(tokens[mask].tolist())
            for tokens, mask in zip(rollout.tokens, rollout.response_mask, strict=True)
        ]
        scored = score_rows(self._function, responses, prompts.rows, self._config.fallback_score)
        failed = float(np.mean(scored.scores.failed))
        if failed > self._config.max_failed_fraction:
            raise UserError(
                f"the reward function failed on {failed:.0%} of the rows, more than reward.max_failed_fraction "
                f"({self._config.max_failed_fraction:.0%}); the first failure: {scored.first_failure}"
            )
        return scored.scores, responses

    @exposed("reward")
    def score(self, rollout: Rollout, prompts: Prompts) -> Scores:
        """Score each response."""
        return self._judge(rollout, prompts)[0]

    @exposed("testing")
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


class Estimator:
    """The numeric part of the algorithm, and the KL coefficient, its only state."""

    def __init__(self, config: Config, derived: Derived, mesh: Mesh):
        algorithm, self._kl = config.algorithm, config.algorithm.kl
        self._experience = jax.jit(
            PPOEstimator(
                discount=algorithm.discount,
                gae_lambda=algorithm.gae_lambda,
                whiten_advantages=algorithm.whiten_advantages,
                kl_reward_estimator=self._kl.reward_estimator,
            )
        )
        self._statistics = jax.jit(
            experience_statistics, static_argnames=("kl_estimator", "max_response_tokens")
        )
        self._max_response_tokens = config.rollout.max_response_tokens
        self._kl_coefficient = self._kl.reward_coefficient

    @exposed("adv")
    def experience(
        self,
        rollout: Rollout,
        scores: Scores,
        actor_log_probs: TokenLogProbs,
        reference_log_probs: TokenLogProbs,
        values: np.ndarray,
    ) -> Experience:
        """Estimate advantages and returns."""
        made = self._experience(
            rollout,
            scores,
            actor_log_probs.log_probs,
            reference_log_probs.log_probs,
            values,
            self._kl_coefficient,
        )
        return jax.tree.map(np.asarray, made)

    @exposed("adv")
    def statistics(self, rollout: Rollout, scores: Scores, experience: Experience) -> Metrics:
        """Describe the step in named scalars, then adapt the KL coefficient to it if so configured."""
        scalars = self._statistics(
            rollout,
            scores,
            experience,
            self._kl_coefficient,
            kl_estimator=self._kl.reward_estimator,
            max_response_tokens=self._max_response_tokens,
        )
        metrics = {name: float(value) for name, value in scalars.items()}
        if self._kl.controller == "adaptive":
            self._kl_coefficient = adapt_coefficient(
                self._kl_coefficient,
                metrics["actor/reward_kl_penalty"],
                self._kl.target,
                self._kl.horizon_sequences,
                len(rollout.lengths),
            )
        return metrics

    @exposed("save_checkpoint")
    def save(self, directory: str) -> None:
        """Write the coefficient."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "estimator.json").write_text(json.dumps({"kl_coefficient": self._kl_coefficient}))

    @exposed("load")
    def restore(self, directory: str) -> None:
        """Continue with the coefficient that `save` wrote."""
        self._kl_coefficient = json.loads((Path(directory) / "estimator.json").read_text())["kl_coefficient"]
