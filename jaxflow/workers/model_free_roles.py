"""The roles that hold no model and read no text: the numeric part of the algorithms.

Knows the config and arrays; knows neither processes nor transport. Arguments and results are host arrays.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxflow.algorithms.kl import adapt_coefficient
from jaxflow.algorithms.lagrange import Multiplier, constrained_advantages
from jaxflow.algorithms.masked import whiten
from jaxflow.algorithms.selection import refilled_rows, uninformative_groups
from jaxflow.algorithms.statistics import experience_statistics
from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.rows import Rows
from jaxflow.engine.sharding import training_layout
from jaxflow.types import Experience, Metrics, Rollout, Scores, TokenLogProbs
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.row_values import join_rows
from jaxflow.workers.rule import experience_estimator, multiplier_rule
from jaxflow.workers.transfer import ONE_TO_ALL, REARRANGING, THREE_D_PROTO


class Estimator:
    """The numeric part of the algorithms; its state are the coefficients that follow the data: β and λ."""

    def __init__(self, config: Config, derived: Derived, place: Place):
        self._config, self._kl = config, config.algorithm.kl
        layout = training_layout(place.mesh)
        self._rows = Rows(place.mesh, layout.axes["batch"])
        rows = layout.sharding(("batch",))
        self._experience = jax.jit(experience_estimator(config), out_shardings=rows)
        self._constrained = jax.jit(_constrained, static_argnames="whitened", out_shardings=rows)
        self._statistics = jax.jit(
            experience_statistics,
            static_argnames=("kl_estimator", "max_response_tokens", "with_critic"),
            out_shardings=layout.replicated,
        )
        self._sequences_per_step = derived.sequences_per_step
        self._samples_per_prompt = config.rollout.samples_per_prompt
        self._multiplier_rule = multiplier_rule(config)
        self._kl_coefficient = self._kl.reward_coefficient
        self._multiplier = Multiplier(config.algorithm.lagrange.initial, ())
        self._sampled: list[Scores] = []  # of the step's rounds of generation, where there are several

    def _placed(self, rollout: Rollout | Experience, *batches: Any) -> Any:
        """Put the rollout and what was said of it onto the mesh, at one length for all processes' rows."""
        width = ladder(int(np.max(self._rows.gather(rollout.lengths))), LENGTH_UNIT)
        return self._rows.place(tuple(_widened(batch, width) for batch in (rollout, *batches)))

    def _estimated(
        self,
        rollout: Rollout,
        scores: Scores,
        actor: TokenLogProbs,
        reference: TokenLogProbs | None,
        values: np.ndarray | None,
        greedy_scores: np.ndarray | None,
        kl_coefficient: float,
    ) -> Experience:
        reference_log_probs = None if reference is None else reference.log_probs
        told = (scores, actor.log_probs, reference_log_probs, values, greedy_scores)
        *placed, reference_kl = self._placed(rollout, *told, actor.reference_kl)
        return self._rows.fetch(self._experience(*placed, kl_coefficient, reference_kl))

    @exposed("adv", THREE_D_PROTO)
    def experience(
        self,
        rollout: Rollout,
        scores: Scores,
        actor_log_probs: TokenLogProbs,
        reference_log_probs: TokenLogProbs | None,
        values: np.ndarray | None = None,
    ) -> Experience:
        """Estimate advantages and returns."""
        beta = self._kl_coefficient
        return self._estimated(rollout, scores, actor_log_probs, reference_log_probs, values, None, beta)

    @exposed("adv", THREE_D_PROTO)
    def experience_over_greedy(
        self,
        rollout: Rollout,
        scores: Scores,
        greedy_scores: Scores,
        actor_log_probs: TokenLogProbs,
        reference_log_probs: TokenLogProbs | None,
    ) -> Experience:
        """Estimate advantages over the scores of greedy responses to the same prompts."""
        beta, baseline = self._kl_coefficient, greedy_scores.scores
        return self._estimated(rollout, scores, actor_log_probs, reference_log_probs, None, baseline, beta)

    @exposed("adv", THREE_D_PROTO)
    def cost_experience(
        self,
        rollout: Rollout,
        costs: Scores,
        actor_log_probs: TokenLogProbs,
        reference_log_probs: TokenLogProbs | None,
        cost_values: np.ndarray,
    ) -> Experience:
        """Estimate advantages and returns of costs; the KL is a cost, with the weight that it has in the rewards."""
        beta = -self._kl_coefficient
        return self._estimated(rollout, costs, actor_log_probs, reference_log_probs, cost_values, None, beta)

    @exposed("adv", THREE_D_PROTO)
    def constrained(self, experience: Experience, cost_experience: Experience, costs: Scores) -> Experience:
        """Weigh rewards against costs by the multiplier that these costs lead to; `follow_costs` makes it stay."""
        multiplier = self._followed(costs).value
        placed, whitened = self._placed(experience, cost_experience), self._config.algorithm.whiten_advantages
        return self._rows.fetch(self._constrained(*placed, multiplier, whitened=whitened))

    def _followed(self, costs: Scores) -> Multiplier:
        return self._multiplier_rule(self._multiplier, self._rows.gather(costs.scores).tolist())

    @exposed("adv", THREE_D_PROTO, replicated=True)
    def follow_costs(self, costs: Scores) -> Metrics:
        """Move the multiplier to where the step's costs lead, and describe it."""
        self._multiplier = self._followed(costs)
        window, scores = self._multiplier.window, self._rows.gather(costs.scores)
        return {
            "constraint/multiplier": self._multiplier.value,
            "constraint/threshold": self._multiplier_rule.threshold,
            "constraint/window_cost_mean": float(np.mean(window)) if window else 0.0,
            "constraint/cost/mean": float(np.mean(scores)),
            "constraint/cost/over_threshold": float(np.mean(scores > self._multiplier_rule.threshold)),
            "constraint/failed_rows": float(np.sum(self._rows.gather(costs.failed))),
        }

    @exposed("adv", ONE_TO_ALL, replicated=True)
    def uninformative_groups(self, scores: Scores) -> int:
        """Count the groups whose rewards are all equal."""
        self._sampled = self._sampled or [scores]
        return int(np.sum(self._uninformative(scores)))

    def _uninformative(self, scores: Scores) -> np.ndarray:
        by_accuracy = self._config.algorithm.dynamic_sampling.metric == "accuracy"
        measure = scores.accuracy if by_accuracy else scores.scores
        return uninformative_groups(measure, self._samples_per_prompt)

    def _sources(self, scores: Scores, their_scores: Scores) -> np.ndarray:
        held, others = self._uninformative(scores), self._uninformative(their_scores)
        return refilled_rows(held, others, self._samples_per_prompt)

    @exposed("adv", REARRANGING)
    def refilled_rollout(
        self, rollout: Rollout, others: Rollout, scores: Scores, their_scores: Scores
    ) -> Rollout:
        """Replace uninformative groups by informative ones of another rollout, as far as there are any."""
        source = self._sources(scores, their_scores)
        picked = jax.tree.map(lambda leaf: leaf[source], join_rows([rollout, others]))
        return dataclasses.replace(picked, groups=rollout.groups)

    @exposed("adv", REARRANGING)
    def refilled_scores(self, scores: Scores, their_scores: Scores) -> Scores:
        """Replace the scores of the same groups."""
        self._sampled.append(their_scores)
        source = self._sources(scores, their_scores)
        return jax.tree.map(lambda leaf: leaf[source], join_rows([scores, their_scores]))

    @exposed("adv", THREE_D_PROTO, replicated=True)
    def statistics(self, rollout: Rollout, scores: Scores, experience: Experience) -> Metrics:
        """Describe the step in named scalars, then adapt the KL coefficient to it if so configured."""
        scalars = self._statistics(
            *self._placed(rollout, scores, experience),
            self._kl_coefficient,
            kl_estimator=self._kl.reward_estimator,
            max_response_tokens=self._config.rollout.max_response_tokens,
            with_critic=any("critic" in pool.roles for pool in self._config.cluster.pools.values()),
        )
        metrics = {name: float(value) for name, value in scalars.items()}
        if self._samples_per_prompt > 1:
            flags = uninformative_groups(self._rows.gather(scores.scores), self._samples_per_prompt)
            metrics["reward/uninformative_groups"] = float(np.mean(flags))
        if self._sampled:
            # What was drawn, before the choice: the scores of chosen groups say little of the policy.
            metrics["reward/sampled_score_mean"] = float(np.mean([told.scores for told in self._sampled]))
            metrics["reward/sampled_accuracy_mean"] = float(
                np.mean([told.accuracy for told in self._sampled])
            )
            self._sampled = []
        if self._kl.controller == "adaptive":
            self._kl_coefficient = adapt_coefficient(
                self._kl_coefficient,
                metrics["actor/reward_kl_penalty"],
                self._kl.target,
                self._kl.horizon_sequences,
                self._sequences_per_step,
            )
        return metrics

    @exposed("save_checkpoint", ONE_TO_ALL)
    def save(self, directory: str) -> None:
        """Write the coefficients; every process has the same, the first one writes them."""
        if jax.process_index() != 0:
            return
        Path(directory).mkdir(parents=True, exist_ok=True)
        state = {
            "kl_coefficient": self._kl_coefficient,
            "multiplier": {"value": self._multiplier.value, "window": list(self._multiplier.window)},
        }
        (Path(directory) / "estimator.json").write_text(json.dumps(state))

    @exposed("load", ONE_TO_ALL)
    def restore(self, directory: str) -> None:
        """Continue with the coefficients that `save` wrote."""
        state = json.loads((Path(directory) / "estimator.json").read_text())
        self._kl_coefficient = state["kl_coefficient"]
        self._multiplier = Multiplier(state["multiplier"]["value"], tuple(state["multiplier"]["window"]))


def _constrained(
    experience: Experience, cost_experience: Experience, multiplier: jax.Array | float, whitened: bool
) -> Experience:
    """Combine the raw advantages of both streams, G − V, and whiten their combination if asked.

    Whitened one by one, rewards and costs would be weighed by their spread as well as by the multiplier.
    """
    mask = experience.response_mask
    advantages = constrained_advantages(
        experience.returns - experience.values,
        cost_experience.returns - cost_experience.values,
        multiplier,
    )
    return dataclasses.replace(experience, advantages=whiten(advantages, mask) if whitened else advantages)


def _widened(batch: Any, width: int) -> Any:
    """Bring [B, T] to [B, width]: what is cut or added is padding. [B] stays, and so do scores, [B, K]."""
    if isinstance(batch, Scores):
        return batch

    def widened(leaf: np.ndarray) -> np.ndarray:
        if leaf.ndim == 1:
            return leaf
        return np.pad(leaf[:, :width], ((0, 0), (0, max(0, width - leaf.shape[1]))))

    return jax.tree.map(widened, batch)
