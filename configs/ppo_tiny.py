"""PPO on two-digit addition with a 0.8M-parameter decoder: minutes on two CPU cores, nothing to download."""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes."""
    config = default_config_dict()
    config.run.total_steps = 60

    # Four simulated devices show every axis at work: rows are split in two, weights in two for training, and
    # generation holds whole weights (t_g = 1), so each step passes through the 3D-HybridEngine's switch.
    config.cluster.devices = 4
    config.cluster.mesh.data = 2
    config.cluster.mesh.tensor = 2
    config.cluster.mesh.generation_tensor = 1

    config.data.task = "addition"
    config.data.prompts_per_step = 128
    config.data.max_prompt_tokens = 8  # "99+99=" has 6
    config.rollout.samples_per_prompt = 4
    config.rollout.max_response_tokens = 8  # "198" and the end token, with room to ramble

    config.actor.model.width = 128
    config.actor.model.layers = 3
    config.actor.model.heads = 4
    config.actor.model.kv_heads = 4
    config.actor.model.head_width = 32
    config.actor.model.mlp_width = 512
    # At this size activations are small and arithmetic is what the CPU is short of.
    config.actor.model.remat = False

    # A small model far from converged takes steps hundreds of times larger than a pretrained one.
    config.actor.optimizer.learning_rate = 3e-4
    config.critic.optimizer.learning_rate = 1e-3
    # Two updates per step: the second one is off-policy, which is what the clip is for.
    config.actor.minibatch_sequences = 256
    config.critic.minibatch_sequences = 256

    # Enough imitation for the answers to be right now and then, so that there is a reward to learn from.
    config.warm_start.steps = 150
    return config
