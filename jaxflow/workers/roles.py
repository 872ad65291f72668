"""The roles that hold a model, each a thin coat over the engine: what it holds and what it answers.

Knows the config and the engine; knows neither processes nor transport, and no order of calls: that is the
dataflow's. Arguments and results are host arrays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxflow.algorithms.losses import PretrainingLoss, SupervisedLoss, ValueLoss
from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.engine.exchange import Message
from jaxflow.engine.merging import merging
from jaxflow.engine.offload import Frozen
from jaxflow.engine.rows import Rows
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.shards import Shard
from jaxflow.engine.state import load_weights
from jaxflow.engine.train import Auxiliary, Loss, Trainer
from jaxflow.engine.transition import TransitionReport, transition
from jaxflow.models.transformer import LanguageModel, Params, ScalarModel, Unstacked, describe
from jaxflow.models.weights_in import ReadReport
from jaxflow.placement import role_adapters
from jaxflow.types import (
    Demonstrations,
    Experience,
    Metrics,
    Prompts,
    Rollout,
    TokenLogProbs,
)
from jaxflow.workers.life import Begun, HandedOn, OnBackbone, Saved
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.rule import policy_loss
from jaxflow.workers.sampler import Sampler
from jaxflow.workers.trained import TrainedModel, optimizer_of, taught
from jaxflow.workers.transfer import ONE_TO_ALL, THREE_D_ALL_MICRO_DP, THREE_D_PROTO
from jaxflow.workers.weight_exchange import WEIGHTS_OUT, Outgoing

# Streams of randomness under the run's seed, beside those of generation (sampler.py).
_ACTOR_WEIGHTS, _CRITIC_WEIGHTS = 2, 3  # 4: the verifier's (reward_model.py); 7: rule.py's
_COST_CRITIC_WEIGHTS = 5


def _log_prob_temperature(config: Config) -> float:
    """Return the temperature that log-probs are taken at: the sampler's, or 1 where it is greedy."""
    return config.rollout.temperature if config.rollout.temperature > 0 else 1.0


class Actor(Saved):
    """The policy: trains, scores and generates with one set of weights in two layouts."""

    def __init__(self, config: Config, derived: Derived, place: Place):
        rollout = config.rollout
        self._config, self._place = config, place
        model = describe(derived.actor_model, LanguageModel, role_adapters(config, "actor"))
        training = training_layout(place.mesh, model.config)
        self._generation = generation_layout(place.mesh, model.config)
        self._generation_shardings = self._generation.weights(model.base.names)
        self._merge = merging(model, training, rollout.dtype) if model.adapters is not None else None
        self._pretraining_loss = PretrainingLoss(config.algorithm.ptx_coefficient)
        temperature = _log_prob_temperature(config)
        self._trained = TrainedModel(
            Trainer(
                model,
                training,
                optimizer_of(config.actor.optimizer, derived.actor.total_updates),
                self._loss(config),
                temperature,
                config.actor.microbatch_tokens_per_device,
                config.actor.router_aux_loss_coefficient,
            ),
            config.actor.optimizer.max_skipped_updates,
            config.run.seed,
            _ACTOR_WEIGHTS,
            place,
        )
        self._scoring = place.scoring_layout(model.config)
        # None: the sampler's own log-probs stand for the policy's, and nothing is scored again.
        self._scorer = (
            None
            if config.algorithm.off_policy.bypass
            else Scorer(model, self._scoring, rollout.score_microbatch_tokens_per_device, temperature)
        )
        self._sampler = Sampler(config, model.base, self._generation)
        self._outgoing = Outgoing(model.base, training.weights(model.base.names), rollout.dtype)
        self._leaving: Params | None = None
        self._rows = Rows(place.mesh, training.axes["batch"])
        self._rollout_weights: Unstacked | None = None
        self._transition_metrics: dict[str, float] = {}

    def _loss(self, config: Config) -> Loss:
        """Return what its updates minimise."""
        return policy_loss(config)

    def _weights(self) -> Unstacked:
        """Return the weights in the generation layout."""
        if self._rollout_weights is None:
            with self._place.span("transition") as span:
                moved, report = self._moved()
                self._rollout_weights = self._sampler.unstacked(moved, keep=self._trained.params)
                span.bytes = report.most_received_bytes
            self._transition_metrics = {
                "transition/seconds": report.seconds,
                "transition/received_bytes_per_device": float(report.most_received_bytes),
            }
        return self._rollout_weights

    def _moved(self) -> tuple[Params, TransitionReport]:
        """Move the weights to the generation layout; adapters are merged first, and that copy is released."""
        dtype, params = self._config.rollout.dtype, self._trained.params
        if self._merge is None:
            return transition(params, self._generation_shardings, dtype)
        return transition(self._merge(params), self._generation_shardings, dtype, release=True)

    @exposed("gen", THREE_D_ALL_MICRO_DP, by_parts=True)
    def generate(self, prompts: Prompts) -> Rollout:
        """Sample one response per row at the training temperature."""
        return self._sampler.train(self._weights(), prompts, self._trained.updates)

    @exposed("gen_max", THREE_D_ALL_MICRO_DP, by_parts=True)
    def generate_greedy(self, prompts: Prompts) -> Rollout:
        """Give each row the response that is likeliest token by token."""
        return self._sampler.greedy(self._weights(), prompts, self._trained.updates)

    @exposed("testing", THREE_D_ALL_MICRO_DP, by_parts=True)
    def generate_validation(self, prompts: Prompts) -> Rollout:
        """Sample one response per row as validation asks."""
        return self._sampler.validate(self._weights(), prompts, self._trained.updates)

    @exposed("load", ONE_TO_ALL, replicated=True)
    def weight_shards(self) -> tuple[tuple[Shard, ...], ...]:
        """Return where the shards of each weight lie, for a generator on another pool."""
        return self._outgoing.shards

    @exposed("load", ONE_TO_ALL, replicated=True)
    def address(self, targets: list[tuple[Shard, ...]]) -> int:
        """Plan the weights' way to a generator's shards; return the number of buckets."""
        return self._outgoing.address(targets)

    @exposed("transition", ONE_TO_ALL, replicated=True)
    def weights_age(self) -> int:
        """Return how many updates the weights have behind them."""
        return self._trained.updates

    @exposed("transition", WEIGHTS_OUT)
    def send_weights(self, tickets: tuple[int, ...], bucket: int) -> tuple[Message, ...]:
        """Return one bucket of the weights, a message for each ticket; adapters are merged first."""
        if self._merge is None:
            return self._outgoing.messages(self._trained.params, bucket)
        if bucket == 0:
            self._leaving = self._merge(self._trained.params)
        return self._outgoing.messages(self._leaving, bucket)

    @exposed("old_log_prob", THREE_D_PROTO, by_parts=True)
    def log_probs(self, rollout: Rollout) -> TokenLogProbs:
        """Score the responses with the training path; where the config bypasses that, with what the sampler said."""
        if self._scorer is None:
            sampled = rollout.rollout_log_probs
            return TokenLogProbs(sampled, np.zeros_like(sampled))
        reference = self._trained.reference if self._config.algorithm.kl.exact_in_rewards else None
        return self._scorer.log_probs(
            self._trained.params_in(self._scoring),
            rollout.tokens,
            rollout.lengths,
            rollout.response_mask,
            reference,
        )

    @exposed("update_actor", THREE_D_PROTO, replicated=True)
    def update(self, experience: Experience, pretraining: Demonstrations | None = None) -> Metrics:
        """Run one step's policy updates; the rollout weights of before are released first."""
        self._rollout_weights, self._leaving = None, None
        actor, auxiliary = self._config.actor, None
        if pretraining is not None:
            auxiliary = Auxiliary(pretraining, self._pretraining_loss)
        ages = self._trained.updates - self._rows.gather(experience.policy_updates)
        metrics = self._trained.update(experience, actor.minibatch_sequences, actor.update_epochs, auxiliary)
        staleness = {
            "training/staleness_updates/mean": float(np.mean(ages)),
            "training/staleness_updates/max": float(np.max(ages)),
        }
        figures = self._transition_metrics | self._sampler.take_figures()
        return named("actor", metrics) | staleness | figures

    @exposed("load", ONE_TO_ALL)
    def load(self, directory: str) -> ReadReport | None:
        """Start from saved weights or a checkpoint."""
        self._rollout_weights = None
        return super().load(directory)

    @exposed("load", ONE_TO_ALL)
    def load_reference(self, directory: str) -> ReadReport | None:
        """Read the frozen weights that the policy is compared with over the whole vocabulary."""
        return self._trained.load_reference(Path(directory), self._config.algorithm.kl.exact_in_loss)

    @exposed("load", ONE_TO_ALL)
    def restore(self, directory: str) -> None:
        """Continue from what `save` wrote."""
        self._rollout_weights = None
        super().restore(directory)


class Student(Begun, HandedOn):
    """The policy before reinforcement learning: learns from demonstrations; then policy and reference start from it."""

    def __init__(self, config: Config, derived: Derived, place: Place):
        settings, layout = config.warm_start, training_layout(place.mesh, derived.actor_model)
        self._sequences = settings.sequences_per_step
        model, loss = describe(derived.actor_model, LanguageModel), SupervisedLoss()
        rate, steps = settings.learning_rate, settings.steps
        self._trained = taught(config, layout, model, loss, rate, steps, _ACTOR_WEIGHTS)

    @exposed("warm_start", THREE_D_PROTO, replicated=True)
    def imitate(self, demonstrations: Demonstrations) -> Metrics:
        """Run one supervised update."""
        return self._trained.update(demonstrations, self._sequences, 1)


class Critic(OnBackbone, Saved):
    """The value model: of whichever stream of experience it is given."""

    _name, _weights = "critic", _CRITIC_WEIGHTS

    def __init__(self, config: Config, derived: Derived, place: Place):
        algorithm = config.algorithm
        self._config = config
        model = describe(derived.critic_model, ScalarModel, role_adapters(config, "critic"))
        layout = training_layout(place.mesh, model.config)
        loss = ValueLoss(
            value_clip=algorithm.value_clip,
            aggregation=algorithm.loss_aggregation,
            length_constant=float(config.rollout.max_response_tokens),
            role=self._name,
        )
        self._trained = TrainedModel(
            Trainer(
                model,
                layout,
                optimizer_of(config.critic.optimizer, derived.critic.total_updates),
                loss,
                1.0,
                config.critic.microbatch_tokens_per_device,
                config.critic.router_aux_loss_coefficient,
            ),
            config.critic.optimizer.max_skipped_updates,
            config.run.seed,
            self._weights,
            place,
        )
        self._scoring = place.scoring_layout(model.config)
        self._scorer = Scorer(model, self._scoring, config.rollout.score_microbatch_tokens_per_device, 1.0)

    @exposed("values", THREE_D_PROTO, by_parts=True)
    def values(self, rollout: Rollout) -> np.ndarray:
        """Estimate V_t before each response token, [B, T]."""
        return self._scorer.values(
            self._trained.params_in(self._scoring), rollout.tokens, rollout.lengths, rollout.response_mask
        )

    @exposed("update_critic", THREE_D_PROTO, replicated=True)
    def update(self, experience: Experience) -> Metrics:
        """Run one step's value updates."""
        critic = self._config.critic
        metrics = self._trained.update(experience, critic.minibatch_sequences, critic.update_epochs)
        return named(self._name, metrics)


class CostCritic(Critic):
    """The value model of costs: the critic's shape and settings, weights of its own."""

    _name, _weights = "cost_critic", _COST_CRITIC_WEIGHTS

    @exposed("cost_values", THREE_D_PROTO, by_parts=True)
    def values(self, rollout: Rollout) -> np.ndarray:
        """Estimate the costs to come before each response token, [B, T]."""
        return super().values(rollout)

    @exposed("update_cost_critic", THREE_D_PROTO, replicated=True)
    def update(self, experience: Experience) -> Metrics:
        """Run one step's value updates on the costs."""
        return super().update(experience)


class Reference:
    """The policy's frozen starting point."""

    def __init__(self, config: Config, derived: Derived, place: Place):
        self._model = describe(derived.actor_model, LanguageModel)
        self._layout = place.scoring_layout(derived.actor_model)
        budget = config.rollout.score_microbatch_tokens_per_device
        self._scorer = Scorer(self._model, self._layout, budget, _log_prob_temperature(config))
        self._place, self._weights = place, Frozen({}, False)

    @exposed("load", ONE_TO_ALL)
    def load(self, directory: str) -> ReadReport | None:
        """Read the frozen weights."""
        parts = tuple(self._model.shapes)
        params, report = load_weights(Path(directory), self._model, self._layout, parts)
        self._weights = Frozen(params, self._place.offload)
        return report

    @exposed("ref", THREE_D_PROTO, by_parts=True)
    def log_probs(self, rollout: Rollout) -> TokenLogProbs:
        """Score the responses with the frozen weights."""
        with self._weights.at_hand() as (params, moved):
            self._place.note_offload(moved)
            return self._scorer.log_probs(params, rollout.tokens, rollout.lengths, rollout.response_mask)


def named(role: str, metrics: dict[str, float]) -> dict[str, float]:
    """Put the engine's own names under the role's; the loss's parts bear it already."""
    return {name if "/" in name else f"{role}/{name}": value for name, value in metrics.items()}
