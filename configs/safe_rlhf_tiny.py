"""Safe-RLHF on a learned reward and a learned cost that conflict: all three stages in minutes on two CPU cores.

Beside what ppo_learned_reward.py asks for, a cost model:

    python -m jaxflow.main --config=configs/cost_model_tiny.py --workdir=runs/cost
        --config.actor.weights=runs/sft/checkpoints/step_00000200/actor/weights
    python -m jaxflow.main --config=configs/safe_rlhf_tiny.py --workdir=runs/safe_rlhf
        --config.actor.weights=runs/sft/checkpoints/step_00000200/actor/weights
        --config.reward.weights=runs/reward/checkpoints/step_00000500/reward/weights
        --config.cost.weights=runs/cost/checkpoints/step_00000200/cost/weights
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from jaxflow.config import pool

# By its path: config files lie beside each other and are no package.
ppo = runpy.run_path(str(pathlib.Path(__file__).with_name("ppo_learned_reward.py")))


def get_config() -> ConfigDict:
    """Return ppo_learned_reward under a limit on the mean cost of a response."""
    config = ppo["get_config"]()
    config.algorithm.name = "safe_rlhf"
    roles = [*config.cluster.pools.main.roles, "cost", "cost_critic", "pretraining"]
    config.cluster.pools = {"main": pool(roles, devices_per_host=2, data=2)}

    # Its number is the cost; the function beside it tells `cost/safe/mean`, the share that does no harm.
    config.cost.kind = "model"
    config.cost.scorer = "wishes_cost"

    config.algorithm.score_bound = 50.0
    config.algorithm.ptx_coefficient = 0.05
    config.algorithm.lagrange.window_episodes = 512  # one step
    config.algorithm.lagrange.learning_rate = 0.03
    return config
