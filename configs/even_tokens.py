"""The toy that RL libraries are compared on: from a random model to even token ids, in a minute on two CPU cores.

No checkpoint, no tokenizer file, no data: a randomly initialised decoder is asked with random tokens and paid the
share of its 64 response tokens whose ids are even. Chance is 0.5; `critic/score/mean` is to reach 0.9.
"""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict, pool


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes."""
    config = default_config_dict()
    config.algorithm.name = "grpo"
    config.run.total_steps = 100
    config.run.evaluate_every_steps = 0
    config.cluster.pools = {"main": pool(["actor", "reward", "estimator"], devices_per_host=2, data=2)}

    # Prompts are 8 random ids out of 256; the reward is told the ids of the response themselves.
    config.data.task = "even_tokens"
    config.reward.scorer = "even_tokens"
    config.data.max_prompt_tokens = 8
    config.data.prompts_per_step = 16
    config.rollout.samples_per_prompt = 4
    config.rollout.max_response_tokens = 64
    config.rollout.ignore_end_token = True

    config.actor.model.width = 64
    config.actor.model.layers = 2
    config.actor.model.heads = 4
    config.actor.model.kv_heads = 4
    config.actor.model.head_width = 16
    config.actor.model.mlp_width = 256
    config.actor.model.remat = False

    # One update per step, on policy, at a constant rate, with nothing that pulls back.
    config.actor.minibatch_sequences = 64
    config.actor.optimizer.learning_rate = 1e-3
    config.algorithm.kl.reward_coefficient = 0.0
    return config
