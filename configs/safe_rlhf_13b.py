"""ppo_13b with Safe-RLHF: six models, a cost model and its critic among them. `--plan` needs no GPU.

A run asks for --config.cost.weights=DIR, of a model that says what a response costs.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# By its path: config files lie beside each other and are no package.
ppo_13b = runpy.run_path(str(pathlib.Path(__file__).with_name("ppo_13b.py")))


def get_config() -> ConfigDict:
    """Return ppo_13b under Safe-RLHF."""
    config = ppo_13b["get_config"]()
    config.algorithm.name = "safe_rlhf"
    config.cost.kind = "model"
    return config
