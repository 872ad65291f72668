"""ppo_tiny's task and warm start with ReMax: a greedy response as the baseline. Minutes on two CPU cores."""

import pathlib
import runpy

from ml_collections import ConfigDict

# By its path: config files lie beside each other and are no package.
ppo_tiny = runpy.run_path(str(pathlib.Path(__file__).with_name("ppo_tiny.py")))


def get_config() -> ConfigDict:
    """Return ppo_tiny without a critic, each sampled response judged by the greedy one to its prompt."""
    config = ppo_tiny["get_config"]()
    config.algorithm.name = "remax"
    config.cluster.pools.main.roles = ("actor", "reference", "reward", "estimator")

    # One sample and one greedy response of each prompt.
    config.data.prompts_per_step = 1024
    config.rollout.samples_per_prompt = 1
    return config
