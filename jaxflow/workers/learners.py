"""The roles of the stages before reinforcement learning: a policy that imitates or prefers, a judge that is taught.

Knows the config and the engine; knows neither processes nor transport. Arguments and results are host arrays.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxflow.algorithms.losses import SupervisedLoss
from jaxflow.algorithms.preference import (
    CostModelLoss,
    KTOLoss,
    PreferenceLoss,
    RewardModelLoss,
    mismatched,
    reward_means,
)
from jaxflow.batch_algebra import Derived, UpdatePlan
from jaxflow.config import Config
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.train import Loss, Trainer, TrainingBatch
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import ScalarModel, describe
from jaxflow.types import Demonstrations, Judgements, Metrics, Preferences, TokenLogProbs
from jaxflow.workers.life import OnBackbone, Saved
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.reward_model import read_afterwards
from jaxflow.workers.roles import Actor, named
from jaxflow.workers.trained import TrainedModel, optimizer_of
from jaxflow.workers.transfer import REARRANGING, THREE_D_PROTO

# Beside the streams of the other roles' weights (roles.py, reward_model.py).
_REWARD_WEIGHTS, _COST_WEIGHTS = 8, 9


class _Learner(Actor):
    """A policy that learns from rows which have their responses."""

    def _learn(self, batch: TrainingBatch) -> Metrics:
        """Run one step's updates; the rollout weights of before are released first."""
        self._rollout_weights, self._leaving = None, None
        actor = self._config.actor
        return named("actor", self._trained.update(batch, actor.minibatch_sequences, actor.update_epochs))


class Imitator(_Learner):
    """The policy in supervised fine-tuning."""

    def _loss(self, config: Config) -> Loss:
        return SupervisedLoss()

    @exposed("update_actor", THREE_D_PROTO, replicated=True)
    def update(self, demonstrations: Demonstrations) -> Metrics:
        """Run one step's supervised updates."""
        return self._learn(demonstrations)

    @exposed("testing", THREE_D_PROTO, replicated=True)
    def measure(self, demonstrations: Demonstrations) -> Metrics:
        """Say what the loss makes of demonstrations, and learn nothing."""
        return self._trained.measure(demonstrations)


class Preferrer(_Learner):
    """The policy that learns from pairs, against the reference."""

    def _loss(self, config: Config) -> Loss:
        preference = config.algorithm.preference
        return PreferenceLoss(preference.loss, preference.beta, preference.label_smoothing)

    @exposed("update_actor", THREE_D_PROTO, replicated=True)
    def update(self, preferences: Preferences, reference_log_probs: TokenLogProbs) -> Metrics:
        """Run one step's updates."""
        said = reference_log_probs.log_probs
        return self._learn(dataclasses.replace(preferences, reference_log_probs=said))

    @exposed("testing", THREE_D_PROTO, replicated=True)
    def measure(self, preferences: Preferences, reference_log_probs: TokenLogProbs) -> Metrics:
        """Say what the loss makes of pairs, and learn nothing."""
        said = reference_log_probs.log_probs
        return self._trained.measure(dataclasses.replace(preferences, reference_log_probs=said))


class KTOLearner(_Learner):
    """The policy that learns from judged responses, against the reference."""

    def _loss(self, config: Config) -> Loss:
        preference = config.algorithm.preference
        return KTOLoss(preference.beta, preference.desirable_weight, preference.undesirable_weight)

    @exposed("update_actor", THREE_D_PROTO, replicated=True)
    def update(
        self,
        judgements: Judgements,
        reference_log_probs: TokenLogProbs,
        reference_points: Float[np.ndarray, "B"],
    ) -> Metrics:
        """Run one step's updates."""
        return reward_means(self._learn(_referred(judgements, reference_log_probs, reference_points)))

    @exposed("testing", THREE_D_PROTO, replicated=True)
    def measure(
        self,
        judgements: Judgements,
        reference_log_probs: TokenLogProbs,
        reference_points: Float[np.ndarray, "B"],
    ) -> Metrics:
        """Say what the loss makes of responses, and learn nothing."""
        referred = _referred(judgements, reference_log_probs, reference_points)
        return reward_means(self._trained.measure(referred))

    @exposed("adv", REARRANGING)
    def mismatched(self, judgements: Judgements) -> Demonstrations:
        """Put each row's response behind the prompt of the next row of the step."""
        return mismatched(judgements)

    @exposed("adv", THREE_D_PROTO)
    def reference_points(
        self, log_probs: TokenLogProbs, reference_log_probs: TokenLogProbs
    ) -> Float[np.ndarray, "B"]:
        """Return z = max(0, mean of log π_θ − log π_ref over all rows' mismatched responses), once per row."""
        moved = np.sum(log_probs.log_probs - reference_log_probs.log_probs, axis=1)
        point = max(0.0, float(np.mean(self._rows.gather(moved))))
        return np.full(len(moved), point, np.float32)


class _JudgeLearner(OnBackbone, Saved):
    """A scalar model that learns from pairs, in the section of the config that it will judge under."""

    _section: str
    _stream: int

    def __init__(self, config: Config, derived: Derived, place: Place):
        self._config = vars(config)[self._section]
        decoder, plan = self._plan(derived)
        model, settings = describe(decoder, ScalarModel), self._config
        trainer = Trainer(
            model,
            training_layout(place.mesh, decoder),
            optimizer_of(settings.optimizer, plan.total_updates),
            self._loss(),
            1.0,
            settings.microbatch_tokens_per_device,
        )
        skipped = settings.optimizer.max_skipped_updates
        self._trained = TrainedModel(trainer, skipped, config.run.seed, self._stream, place)

    def _plan(self, derived: Derived) -> tuple[DecoderConfig, UpdatePlan]:
        raise NotImplementedError

    def _loss(self) -> Loss:
        raise NotImplementedError

    def _learn(self, preferences: Preferences) -> Metrics:
        settings, batch = self._config, _read_pairs_afterwards(preferences)
        return self._trained.update(batch, settings.minibatch_sequences, settings.update_epochs)

    @exposed("testing", THREE_D_PROTO, replicated=True)
    def measure(self, preferences: Preferences) -> Metrics:
        """Say what the loss makes of pairs, and learn nothing."""
        return self._trained.measure(_read_pairs_afterwards(preferences))


class RewardLearner(_JudgeLearner):
    """The reward model while it is taught."""

    _section, _stream = "reward", _REWARD_WEIGHTS

    def _plan(self, derived: Derived) -> tuple[DecoderConfig, UpdatePlan]:
        return derived.reward_model, derived.taught["reward"]

    def _loss(self) -> Loss:
        return RewardModelLoss(self._config.center_coefficient)

    @exposed("update_reward", THREE_D_PROTO, replicated=True)
    def update(self, preferences: Preferences) -> Metrics:
        """Run one step's updates."""
        return named("reward_model", self._learn(preferences))


class CostLearner(_JudgeLearner):
    """The cost model while it is taught."""

    _section, _stream = "cost", _COST_WEIGHTS

    def _plan(self, derived: Derived) -> tuple[DecoderConfig, UpdatePlan]:
        return derived.cost_model, derived.taught["cost"]

    def _loss(self) -> Loss:
        return CostModelLoss()

    @exposed("update_cost", THREE_D_PROTO, replicated=True)
    def update(self, preferences: Preferences) -> Metrics:
        """Run one step's updates."""
        return named("cost_model", self._learn(preferences))


def _referred(
    judgements: Judgements, reference_log_probs: TokenLogProbs, reference_points: Float[np.ndarray, "B"]
) -> Judgements:
    said = reference_log_probs.log_probs
    return dataclasses.replace(judgements, reference_log_probs=said, reference_points=reference_points)


def _read_pairs_afterwards(preferences: Preferences) -> Preferences:
    """Move both masks one position on, as `read_afterwards` does."""
    tokens, lengths, response_mask = read_afterwards(
        preferences.tokens, preferences.chosen_lengths, preferences.response_mask
    )
    return dataclasses.replace(
        preferences,
        tokens=tokens,
        chosen_lengths=lengths,
        rejected_lengths=preferences.rejected_lengths + 1,
        response_mask=response_mask,
    )
