"""ppo_tiny with every model on devices of its own: four pools, five processes on one machine."""

import pathlib
import runpy

from ml_collections import ConfigDict

from jaxflow.config import pool

# By its path: config files lie beside each other and are no package.
ppo_split = runpy.run_path(str(pathlib.Path(__file__).with_name("ppo_split.py")))


def get_config() -> ConfigDict:
    """Return ppo_split with its pools taken apart."""
    config = ppo_split["get_config"]()
    config.run.total_steps = 10

    # The estimator needs no devices: it stands where the values are that it reads.
    config.cluster.pools = {
        "actor": pool(["actor"], hosts=2, devices_per_host=2, data=2, tensor=2),
        "critic": pool(["critic", "estimator"], devices_per_host=2, data=2),
        "reference": pool(["reference"]),
        "reward": pool(["reward"]),
    }
    return config
