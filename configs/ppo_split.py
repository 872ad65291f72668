"""ppo_tiny on two pools: the policy on two hosts, what judges it on a third. Three processes on one machine."""

import pathlib
import runpy

from ml_collections import ConfigDict

from jaxflow.config import pool

# By its path: config files lie beside each other and are no package.
ppo_tiny = runpy.run_path(str(pathlib.Path(__file__).with_name("ppo_tiny.py")))


def get_config() -> ConfigDict:
    """Return ppo_tiny with a reward model, and with models that can work at the same time apart."""
    config = ppo_tiny["get_config"]()
    config.run.total_steps = 20

    # Two processes run the policy's one mesh: the rows are split between them, and each holds both halves of the
    # weights. Critic and reward model score on devices of their own, while the actor and its reference score here.
    config.cluster.pools = {
        "policy": pool(["actor", "reference"], hosts=2, devices_per_host=2, data=2, tensor=2),
        "judges": pool(["critic", "reward", "estimator"], hosts=1, devices_per_host=2, data=2),
    }
    # The first half of a step's responses is scored by the judges while the second half is generated.
    config.rollout.parts = 2

    # The reward model has the actor's shape and learns, before the first step, to tell right words from wrong ones.
    config.reward.kind = "model"
    config.warm_start.reward_steps = 500
    return config
