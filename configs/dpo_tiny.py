"""DPO after a warm start on mediocre answers: two minutes on two CPU cores, no download.

--config.algorithm.preference.loss=ipo is its relative; kto_tiny.py learns from single responses instead of pairs.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from jaxflow.config import pool

# By its path: config files lie beside each other and are no package.
reward_model_tiny = runpy.run_path(str(pathlib.Path(__file__).with_name("reward_model_tiny.py")))


def get_config() -> ConfigDict:
    """Return reward_model_tiny's task and model, with a policy in the reward model's place."""
    config = reward_model_tiny["get_config"]()
    config.algorithm.name = "dpo"
    config.run.total_steps = 200
    config.run.evaluate_every_steps = 50

    # The reward only judges validation answers: by the hidden score, which neither the policy nor its loss sees.
    config.cluster.pools = {"main": pool(["actor", "reference", "reward"], devices_per_host=2, data=2)}
    config.reward.scorer = "wishes"
    # Answers are sampled: the likeliest one of a mediocre policy is better than the policy is.
    config.rollout.validation_temperature = 1.0

    config.warm_start.steps = 200
    config.warm_start.learning_rate = 2e-3
    config.data.prompts_per_step = 128  # pairs
    config.actor.minibatch_sequences = 128
    config.actor.optimizer.learning_rate = 5e-4
    config.actor.optimizer.schedule = "linear"
    config.actor.optimizer.warmup_updates = 10
    config.actor.optimizer.weight_decay = 0.0
    config.algorithm.preference.beta = 0.2
    return config
