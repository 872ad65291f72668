"""The roles that hold no model and read no text: the numeric part of the algorithm.

Knows the config and arrays; knows neither processes nor transport. Arguments and results are host arrays.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxflow.algorithms.experience import PPOEstimator
from jaxflow.algorithms.kl import adapt_coefficient
from jaxflow.algorithms.statistics import experience_statistics
from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.rows import Rows
from jaxflow.engine.sharding import training_layout
from jaxflow.types import Experience, Metrics, Rollout, Scores, TokenLogProbs
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.transfer import ONE_TO_ALL, THREE_D_PROTO


class Estimator:
    """The numeric part of the algorithm, and the KL coefficient, its only state."""

    def __init__(self, config: Config, derived: Derived, place: Place):
        algorithm, self._kl = config.algorithm, config.algorithm.kl
        layout = training_layout(place.mesh)
        self._rows = Rows(place.mesh, layout.axes["batch"])
        estimator = PPOEstimator(
            discount=algorithm.discount,
            gae_lambda=algorithm.gae_lambda,
            whiten_advantages=algorithm.whiten_advantages,
            kl_reward_estimator=self._kl.reward_estimator,
        )
        self._experience = jax.jit(estimator, out_shardings=layout.sharding(("batch",)))
        self._statistics = jax.jit(
            experience_statistics,
            static_argnames=("kl_estimator", "max_response_tokens"),
            out_shardings=layout.replicated,
        )
        self._max_response_tokens = config.rollout.max_response_tokens
        self._sequences_per_step = derived.sequences_per_step
        self._kl_coefficient = self._kl.reward_coefficient

    def _placed(self, rollout: Rollout, *batches: Any) -> Any:
        """Put the rollout and what was said of it onto the mesh, at one length for all processes' rows."""
        width = ladder(int(np.max(self._rows.gather(rollout.lengths))), LENGTH_UNIT)
        return self._rows.place(jax.tree.map(lambda leaf: _widened(leaf, width), (rollout, *batches)))

    @exposed("adv", THREE_D_PROTO)
    def experience(
        self,
        rollout: Rollout,
        scores: Scores,
        actor_log_probs: TokenLogProbs,
        reference_log_probs: TokenLogProbs,
        values: np.ndarray,
    ) -> Experience:
        """Estimate advantages and returns."""
        told = (scores, actor_log_probs.log_probs, reference_log_probs.log_probs, values)
        return self._rows.fetch(self._experience(*self._placed(rollout, *told), self._kl_coefficient))

    @exposed("adv", THREE_D_PROTO, replicated=True)
    def statistics(self, rollout: Rollout, scores: Scores, experience: Experience) -> Metrics:
        """Describe the step in named scalars, then adapt the KL coefficient to it if so configured."""
        scalars = self._statistics(
            *self._placed(rollout, scores, experience),
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
                self._sequences_per_step,
            )
        return metrics

    @exposed("save_checkpoint", ONE_TO_ALL)
    def save(self, directory: str) -> None:
        """Write the coefficient; every process has the same, the first one writes it."""
        if jax.process_index() != 0:
            return
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "estimator.json").write_text(json.dumps({"kl_coefficient": self._kl_coefficient}))

    @exposed("load", ONE_TO_ALL)
    def restore(self, directory: str) -> None:
        """Continue with the coefficient that `save` wrote."""
        self._kl_coefficient = json.loads((Path(directory) / "estimator.json").read_text())["kl_coefficient"]


def _widened(leaf: np.ndarray, width: int) -> np.ndarray:
    """Bring [B, T] to [B, width]: what is cut or added is padding. [B] stays."""
    if leaf.ndim == 1:
        return leaf
    return np.pad(leaf[:, :width], ((0, 0), (0, max(0, width - leaf.shape[1]))))
