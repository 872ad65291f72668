"""PPO on a reward that was learnt from preferences: what classic RLHF's third stage does, in minutes on two CPU cores.

The two stages before leave what it starts from and asks, each in its workdir:

    python -m jaxflow.main --config=configs/sft_tiny.py --workdir=runs/sft --config.data.task=wishes
        --config.data.max_prompt_tokens=8 --config.rollout.max_response_tokens=9 --config.reward.scorer=wishes
    python -m jaxflow.main --config=configs/reward_model_tiny.py --workdir=runs/reward
        --config.actor.weights=runs/sft/checkpoints/step_00000200/actor/weights
    python -m jaxflow.main --config=configs/ppo_learned_reward.py --workdir=runs/ppo
        --config.actor.weights=runs/sft/checkpoints/step_00000200/actor/weights
        --config.reward.weights=runs/reward/checkpoints/step_00000500/reward/weights

Nobody tells this run of harm: it does what is wished for. `safe_rlhf_tiny.py` is the same with a cost model.
"""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict, pool


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes."""
    config = default_config_dict()
    config.run.total_steps = 80
    roles = ["actor", "critic", "reference", "reward", "estimator"]
    config.cluster.pools = {"main": pool(roles, devices_per_host=2, data=2)}

    # "gbd>" wishes for these letters in any order; g and h are harmful.
    config.data.task = "wishes"
    config.data.max_prompt_tokens = 8
    config.rollout.max_response_tokens = 9
    config.data.prompts_per_step = 128
    config.rollout.samples_per_prompt = 4
    # Answers are sampled: what a policy does in the mean is what its cost is about, not its likeliest answer.
    config.rollout.validation_temperature = 1.0

    # The shape that the stages before have, whose weights this run takes.
    config.actor.model.width = 64
    config.actor.model.layers = 2
    config.actor.model.heads = 4
    config.actor.model.kv_heads = 4
    config.actor.model.head_width = 16
    config.actor.model.mlp_width = 256
    config.actor.model.remat = False

    # The learned number is what counts. The function beside it is the hidden score: it tells `reward/help/mean` and
    # `reward/harm/mean`, from which nobody learns.
    config.reward.kind = "model"
    config.reward.model_score = "number"
    config.reward.scorer = "wishes"

    config.actor.minibatch_sequences = 128
    config.critic.minibatch_sequences = 128
    config.actor.optimizer.learning_rate = 3e-4
    config.actor.optimizer.warmup_updates = 20
    config.actor.optimizer.weight_decay = 0.0
    config.critic.optimizer.learning_rate = 2e-3
    config.algorithm.gae_lambda = 0.95
    # A learned reward is worth most near the answers that it was taught on.
    config.algorithm.kl.reward_coefficient = 0.05
    return config
