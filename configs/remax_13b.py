"""ppo_13b with ReMax: a second, greedy response in the critic's place. `--plan` needs no GPU."""

import pathlib
import runpy

from ml_collections import ConfigDict

# By its path: config files lie beside each other and are no package.
ppo_13b = runpy.run_path(str(pathlib.Path(__file__).with_name("ppo_13b.py")))


def get_config() -> ConfigDict:
    """Return ppo_13b under ReMax."""
    config = ppo_13b["get_config"]()
    config.algorithm.name = "remax"
    return config
