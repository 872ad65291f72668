"""A cost model learns from pairs and safety labels (Safe-RLHF): a minute on two CPU cores, no download."""

import pathlib
import runpy

from ml_collections import ConfigDict

from jaxflow.config import pool

# By its path: config files lie beside each other and are no package.
reward_model_tiny = runpy.run_path(str(pathlib.Path(__file__).with_name("reward_model_tiny.py")))


def get_config() -> ConfigDict:
    """Return reward_model_tiny with the other order of the same answers: by the harm that they do."""
    config = reward_model_tiny["get_config"]()
    config.algorithm.name = "cost_model"
    config.run.total_steps = 200  # harm is seen in the answer alone
    config.cluster.pools = {"main": pool(["cost"], devices_per_host=2, data=2)}
    config.data.prompts_per_step = 128  # pairs
    config.reward.minibatch_sequences = 128
    config.cost = config.reward.copy_and_resolve_references()
    return config
