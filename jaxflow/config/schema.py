"""The schema of a run, whole: every key with its default, written once, and its unit.

Knows what a run may be asked, not how anything is done. Rooms below the controller never see these classes: they
are handed plain values.
"""

from __future__ import annotations

import dataclasses

from jaxflow.config.algorithm import AlgorithmConfig
from jaxflow.config.cluster import ClusterConfig
from jaxflow.config.learning import ActorConfig, CriticConfig, RolloutConfig
from jaxflow.config.material import DataConfig, RewardConfig, WarmStartConfig
from jaxflow.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long, and from which seed."""

    seed: int = 0  # everything random in the run is a function of it
    total_steps: int = 100  # of the algorithm
    total_epochs: int = 0  # passes over the training rows, which then set total_steps; 0: total_steps counts
    evaluate_every_steps: int = 10  # 0: never during the run (still before and after, see below)
    evaluate_before: bool = True  # evaluate before the first step
    evaluate_after: bool = True  # evaluate after the last step


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When all state that decides the next step is saved. At the end and on SIGTERM/SIGINT it always is."""

    every_steps: int = 0  # steps between saves; 0: by time alone
    every_minutes: float = 10.0  # minutes between saves; 0: by steps alone
    keep: int = 2  # newest checkpoints kept
    resume: str = "auto"  # auto: continue what the workdir holds | never: refuse a workdir that holds a run


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """What the run writes beside checkpoints. metrics.jsonl and config.json are always written."""

    tensorboard: bool = True
    # Rows shown in the console table; all validation answers go to samples.jsonl
    samples_per_evaluation: int = 6
    timeline_steps: int = 1000  # first steps after each start of the run that timeline.json shows; 0: none


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole."""

    run: RunConfig = RunConfig()
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    cost: RewardConfig = dataclasses.field(
        default_factory=RewardConfig
    )  # of safe_rlhf: what a response must not do
    actor: ActorConfig = dataclasses.field(default_factory=ActorConfig)
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = dataclasses.field(default_factory=AlgorithmConfig)
    warm_start: WarmStartConfig = dataclasses.field(default_factory=WarmStartConfig)
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def critic_model(self) -> DecoderConfig:
        """Return the critic's decoder: its own where one is asked for, the actor's otherwise."""
        return self.actor.model if self.critic.model is None else self.critic.model

    @property
    def reward_model(self) -> DecoderConfig:
        """Return the decoder of a reward model: its own where one is asked for, the actor's otherwise."""
        return self.actor.model if self.reward.model is None else self.reward.model

    @property
    def cost_model(self) -> DecoderConfig:
        """Return the decoder of a cost model: its own where one is asked for, the actor's otherwise."""
        return self.actor.model if self.cost.model is None else self.cost.model
