"""A reward model learns a hidden score from pairs (Bradley–Terry): two minutes on two CPU cores, no download."""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict, pool


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes."""
    config = default_config_dict()
    config.algorithm.name = "reward_model"
    # What a prompt wishes for is learnt late: the first hundred steps see how an answer looks, whatever was asked.
    config.run.total_steps = 500
    config.run.evaluate_every_steps = 50
    config.cluster.pools = {"main": pool(["reward"], devices_per_host=2, data=2)}

    # A prompt wishes for letters, answers name some; which of two is more helpful is drawn from their hidden scores.
    config.data.task = "wishes"
    config.data.max_prompt_tokens = 8
    config.rollout.max_response_tokens = 9
    config.data.prompts_per_step = 256  # pairs
    config.reward.minibatch_sequences = 256

    # The shape of the policy of the stage before, so that the reward model can start from its weights.
    config.actor.model.width = 64
    config.actor.model.layers = 2
    config.actor.model.heads = 4
    config.actor.model.kv_heads = 4
    config.actor.model.head_width = 16
    config.actor.model.mlp_width = 256
    config.actor.model.remat = False

    config.reward.optimizer.learning_rate = 1e-3
    config.reward.optimizer.schedule = "linear"
    config.reward.optimizer.warmup_updates = 20
    config.reward.optimizer.weight_decay = 0.0
    return config
