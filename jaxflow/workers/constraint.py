"""The roles that an algorithm with a constraint has beside PPO's: what judges costs, and what is not to be forgotten.

Knows the config, text and arrays; knows neither processes nor transport.
"""

from __future__ import annotations

import jax
import numpy as np

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.data.source import load_tokenizer
from jaxflow.data.supervised_batches import SupervisedBatches
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.run_rows import pretraining_rows
from jaxflow.types import Demonstrations, Prompts, Rollout, Scores
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.reward import Reward
from jaxflow.workers.reward_model import RewardModel
from jaxflow.workers.transfer import DP_PROTO, THREE_D_PROTO


class Cost(Reward):
    """Judges by a function of its own what responses do that they must not: higher is worse."""

    _section = "cost"

    @exposed("cost", DP_PROTO, by_parts=True)
    def score(self, rollout: Rollout, prompts: Prompts) -> Scores:
        """Give each response its cost."""
        return super().score(rollout, prompts)


class CostModel(RewardModel):
    """Judges costs with a model: the cost is its number s itself, whose zero is where harm begins.

    Safe-RLHF's cost models are trained so (arXiv:2310.12773, their signed pairwise loss).
    """

    _section = "cost"

    def _decoder(self, derived: Derived) -> DecoderConfig:
        """Return the model's shape."""
        return derived.cost_model

    def _scores(self, rollout: Rollout) -> np.ndarray:
        """Return s of each response [B]."""
        return self._numbers(rollout)

    @exposed("cost", THREE_D_PROTO, by_parts=True)
    def score(self, rollout: Rollout, prompts: Prompts) -> Scores:
        """Give each response its cost."""
        return super().score(rollout, prompts)


class Pretraining:
    """Demonstrations that the policy keeps imitating while it learns from rewards: of files, or the task's own."""

    def __init__(self, config: Config, derived: Derived, place: Place):
        tokenizer = load_tokenizer(config.data.task, config.data.tokenizer)
        source = pretraining_rows(config, tokenizer)
        self._batches = SupervisedBatches(source.train, derived.sequences_per_step, True, config.run.seed)

    @exposed("pretraining", DP_PROTO)
    def batch(self, prompts: Prompts) -> Demonstrations:
        """Give as many demonstrations as there are rows of prompts: those of their step and their places in it."""
        demonstrations = self._batches.at(prompts.step)
        return jax.tree.map(lambda leaf: leaf[prompts.sequence_ids], demonstrations)
