"""ppo_tiny's task and warm start with GRPO: groups of samples in the critic's place. Minutes on two CPU cores."""

import pathlib
import runpy

from ml_collections import ConfigDict

# By its path: config files lie beside each other and are no package.
ppo_tiny = runpy.run_path(str(pathlib.Path(__file__).with_name("ppo_tiny.py")))


def get_config() -> ConfigDict:
    """Return ppo_tiny without a critic, each response judged by the others to its prompt."""
    config = ppo_tiny["get_config"]()
    config.algorithm.name = "grpo"
    config.cluster.pools.main.roles = ("actor", "reference", "reward", "estimator")

    # The same 1024 sequences per step, in groups of 8: fewer prompts, better baselines.
    config.data.prompts_per_step = 128
    config.rollout.samples_per_prompt = 8

    # GRPO's pull towards the reference is in the loss.
    config.algorithm.kl.reward_coefficient = 0.0
    config.algorithm.kl.loss_coefficient = 0.001
    return config
