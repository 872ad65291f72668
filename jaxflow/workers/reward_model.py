"""The roles around a reward model: the verifier that learns to judge, and the reward that asks it.

Knows the config and the engine; knows neither processes nor transport. Arguments and results are host arrays.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from jaxflow.algorithms.verifier import VerifierLoss, last_value
from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.engine.offload import Frozen
from jaxflow.engine.rows import Rows
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import load_weights
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import ScalarModel, describe
from jaxflow.models.weights_in import ReadReport
from jaxflow.types import Judgements, Metrics, Prompts, Rollout, Sample, Scores
from jaxflow.workers.life import HandedOn, OnBackbone
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.reward import Reward
from jaxflow.workers.trained import taught
from jaxflow.workers.transfer import ONE_TO_ALL, THREE_D_PROTO

# Beside the streams of the other roles' weights (workers/roles.py).
_VERIFIER_WEIGHTS = 4


def read_afterwards(
    tokens: np.ndarray, lengths: np.ndarray, response_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move the mask one position on, so that the engine's values under it are read *after* each response token.

    The engine's `values[t]` is the estimate before token t; a judgement needs the one after the last token,
    which is the value before one token more. Each row [B, …, T] gets room for that token, [B, …, T + 1]; which
    token stands there is never read.
    """
    before = ((0, 0),) * (tokens.ndim - 1)
    return np.pad(tokens, (*before, (0, 1))), lengths + 1, np.pad(response_mask, (*before, (1, 0)))


class Verifier(OnBackbone, HandedOn):
    """The reward model before reinforcement learning: learns which answers are right, then hands its weights on.

    It best begins from the policy's: what the policy expected to be written is what a wrong token is told by. From
    random weights the same accuracy takes many times the steps.
    """

    def __init__(self, config: Config, derived: Derived, place: Place):
        settings, layout = config.warm_start, training_layout(place.mesh, derived.reward_model)
        self._sequences = settings.sequences_per_step
        model, loss = describe(derived.reward_model, ScalarModel), VerifierLoss()
        rate, steps = settings.reward_learning_rate, settings.reward_steps
        self._trained = taught(config, layout, model, loss, rate, steps, _VERIFIER_WEIGHTS)

    @exposed("warm_start", THREE_D_PROTO, replicated=True)
    def learn(self, judgements: Judgements) -> Metrics:
        """Run one supervised update; `verifier/loss` and `verifier/accuracy` are of the weights before it."""
        tokens, lengths, response_mask = read_afterwards(
            judgements.tokens, judgements.lengths, judgements.response_mask
        )
        batch = dataclasses.replace(judgements, tokens=tokens, lengths=lengths, response_mask=response_mask)
        return self._trained.update(batch, self._sequences, 1)


class RewardModel(Reward):
    """Judges responses with a model: by its number s, or by σ(s) in [0, 1], how likely the response is right.

    A verifier's σ(s) compares with the score of an exact match; a model that learnt from preferences knows only which
    s is larger. Accuracy, and which rows failed, stay the reward function's;
    its rows are cut as the model's are, not as a function's.
    """

    def __init__(self, config: Config, derived: Derived, place: Place):
        super().__init__(config, derived, place)
        decoder = self._decoder(derived)
        self._model = describe(decoder, ScalarModel)
        self._layout = place.scoring_layout(decoder)
        budget = config.rollout.score_microbatch_tokens_per_device
        self._scorer = Scorer(self._model, self._layout, budget, 1.0)
        self._place, self._weights = place, Frozen({}, False)

    def _decoder(self, derived: Derived) -> DecoderConfig:
        """Return the model's shape."""
        return derived.reward_model

    def _split(self, place: Place) -> Rows:
        """Return how rows are cut between the processes: as a model's."""
        return Rows(place.mesh, training_layout(place.mesh).axes["batch"])

    def _numbers(self, rollout: Rollout) -> np.ndarray:
        """Return the model's number s after each response [B]."""
        tokens, lengths, mask = read_afterwards(rollout.tokens, rollout.lengths, rollout.response_mask)
        with self._weights.at_hand() as (params, moved):
            self._place.note_offload(moved)
            return np.asarray(last_value(self._scorer.values(params, tokens, lengths, mask), mask))

    def _scores(self, rollout: Rollout) -> np.ndarray:
        """Return what the config calls a score: s or σ(s) of each response [B]."""
        numbers = self._numbers(rollout)
        return numbers if self._config.model_score == "number" else np.asarray(jax.nn.sigmoid(numbers))

    def _worth(self, rollout: Rollout, told: Scores) -> Float[np.ndarray, "B"]:
        """Return what the responses are worth before any penalty: what the model says; an empty one answers nothing."""
        return np.where(rollout.response_mask.any(axis=1), self._scores(rollout), np.float32(0))

    @exposed("load", ONE_TO_ALL)
    def load(self, directory: str) -> ReadReport | None:
        """Read the weights."""
        parts = tuple(self._model.shapes)
        params, report = load_weights(Path(directory), self._model, self._layout, parts)
        self._weights = Frozen(params, self._place.offload)
        return report

    @exposed("reward", THREE_D_PROTO, by_parts=True)
    def score(self, rollout: Rollout, prompts: Prompts) -> Scores:
        """Score each response."""
        return super().score(rollout, prompts)

    @exposed("testing", THREE_D_PROTO)
    def judge_validation(self, rollout: Rollout, prompts: Prompts) -> tuple[Sample, ...]:
        """Score each response and return it as text."""
        return super().judge_validation(rollout, prompts)
