"""Supervised fine-tuning of a 0.1M-parameter decoder on words and their reversals: a minute on two CPU cores.

The first of three stages; the next ones start from what it leaves in its workdir:

    python -m jaxflow.main --config=configs/sft_tiny.py --workdir=runs/sft
    python -m jaxflow.main --config=configs/reward_model_tiny.py --workdir=runs/rm --config.data.task=reversal
        --config.rollout.max_response_tokens=7 --config.actor.weights=runs/sft/checkpoints/step_00000200/actor/weights
    python -m jaxflow.main --config=configs/ppo_tiny.py --workdir=runs/ppo --config.warm_start.steps=0
        --config.actor.weights=runs/sft/checkpoints/step_00000200/actor/weights
        --config.reward.kind=model --config.reward.model_score=number
        --config.reward.weights=runs/rm/checkpoints/step_00000500/reward/weights
"""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict, pool


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes."""
    config = default_config_dict()
    config.algorithm.name = "sft"
    config.run.total_steps = 200
    config.run.evaluate_every_steps = 50

    # The reward has no part in the lessons: it judges the answers that validation samples, with an exact match.
    config.cluster.pools = {"main": pool(["actor", "reward"], devices_per_host=2, data=2)}

    # "bcad>" asks for "dacb"; the demonstrations are the task's own answers.
    config.data.task = "reversal"
    config.data.max_prompt_tokens = 7
    config.rollout.max_response_tokens = 7
    config.data.prompts_per_step = 256
    config.actor.minibatch_sequences = 256

    config.actor.model.width = 64
    config.actor.model.layers = 2
    config.actor.model.heads = 4
    config.actor.model.kv_heads = 4
    config.actor.model.head_width = 16
    config.actor.model.mlp_width = 256
    # At this size activations are small and arithmetic is what the CPU is short of.
    config.actor.model.remat = False

    config.actor.optimizer.learning_rate = 3e-3
    config.actor.optimizer.schedule = "cosine"
    config.actor.optimizer.warmup_updates = 20
    config.actor.optimizer.weight_decay = 0.0
    return config
