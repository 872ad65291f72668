"""PPO that teaches a 0.1M-parameter decoder to write words backwards: minutes on two CPU cores, no download."""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes."""
    config = default_config_dict()
    config.run.total_steps = 80

    # Four simulated devices show every axis at work: rows are split in two, weights in two for training, and
    # generation holds whole weights (t_g = 1), so each step passes through the 3D-HybridEngine's switch.
    config.cluster.pools.main.devices_per_host = 4
    config.cluster.pools.main.mesh.data = 2
    config.cluster.pools.main.mesh.tensor = 2
    config.cluster.pools.main.mesh.generation_tensor = 1

    # "bcad>" asks for "dacb". Words have 3 to 6 letters, so responses differ in length.
    config.data.task = "reversal"
    config.data.max_prompt_tokens = 7
    config.rollout.max_response_tokens = 7
    config.data.prompts_per_step = 256
    config.rollout.samples_per_prompt = 4

    config.actor.model.width = 64
    config.actor.model.layers = 2
    config.actor.model.heads = 4
    config.actor.model.kv_heads = 4
    config.actor.model.head_width = 16
    config.actor.model.mlp_width = 256
    # At this size activations are small and arithmetic is what the CPU is short of.
    config.actor.model.remat = False

    # Four updates per step: all but the first are off-policy, which is what the clip is for.
    config.actor.minibatch_sequences = 256
    config.critic.minibatch_sequences = 256

    # A small model far from converged takes steps hundreds of times larger than a pretrained one. The ramp lets
    # Adam's moments and the critic settle before the policy moves; the decay steadies the last steps.
    config.actor.optimizer.learning_rate = 6e-4
    config.actor.optimizer.warmup_updates = 20
    config.actor.optimizer.schedule = "linear"
    config.actor.optimizer.final_fraction = 0.1
    config.actor.optimizer.weight_decay = 0.0
    config.critic.optimizer.learning_rate = 2e-3
    config.algorithm.gae_lambda = 0.95

    # Enough imitation for some words to come out right, so that there is a reward to learn from.
    config.warm_start.steps = 60
    config.warm_start.learning_rate = 2e-3
    return config
