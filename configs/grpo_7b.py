"""GRPO of a 7B policy with a rule for a reward, on one host of 8 H100. `--plan` needs no GPU."""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes."""
    config = default_config_dict()
    config.algorithm.name = "grpo"
    config.cluster.platform = "gpu"
    config.cluster.mapping = "auto"
    config.cluster.devices.kind = "h100"
    config.cluster.devices.hosts = 1
    config.cluster.devices.devices_per_host = 8

    config.actor.preset = "qwen2.5-7b"
    config.actor.model.compute_dtype = "bfloat16"
    config.rollout.dtype = "bfloat16"

    config.data.prompts_per_step = 128
    config.rollout.samples_per_prompt = 8
    config.data.max_prompt_tokens = 512
    config.rollout.max_response_tokens = 1536
    config.rollout.sequences_per_device = 1024
    config.actor.minibatch_sequences = 256

    # GRPO's pull towards the reference is in the loss.
    config.algorithm.kl.reward_coefficient = 0.0
    config.algorithm.kl.loss_coefficient = 0.001
    return config
