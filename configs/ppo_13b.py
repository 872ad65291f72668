"""PPO of a 13B policy, critic, reference and reward model: HybridFlow's workload on 16 hosts of 8 H100.

    python -m jaxflow.main --config=configs/ppo_13b.py --plan      what would run where; needs no GPU

A run needs --config.cluster.address of a Ray of these hosts, and what is to be learnt: --config.data.train_files=…
--config.data.tokenizer=DIR --config.actor.weights=DIR --config.reward.weights=DIR --config.warm_start.reward_steps=0.
"""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes."""
    config = default_config_dict()
    config.cluster.platform = "gpu"
    config.cluster.mapping = "auto"
    config.cluster.devices.kind = "h100"
    config.cluster.devices.hosts = 16
    config.cluster.devices.devices_per_host = 8

    config.actor.preset = "llama-2-13b"
    config.actor.model.compute_dtype = "bfloat16"
    config.reward.kind = "model"
    # Without weights of its own it learns, before the first step, to tell the built-in task's right answers from wrong.
    config.warm_start.reward_steps = 500
    config.rollout.dtype = "bfloat16"

    # 1,024 sequences of 1,024 + 1,024 tokens, 8 updates (HybridFlow §8.1).
    config.data.prompts_per_step = 1024
    config.data.max_prompt_tokens = 1024
    config.rollout.max_response_tokens = 1024
    config.rollout.sequences_per_device = 1024
    config.actor.minibatch_sequences = 128
    config.critic.minibatch_sequences = 128
    return config
