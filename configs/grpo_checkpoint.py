"""GRPO of a Hugging Face checkpoint on prompts of yours; weights, tokenizer and files come on the command line.

    python -m jaxflow.main --config=configs/grpo_checkpoint.py \
      --config.actor.weights=DIR --config.data.tokenizer=DIR \
      --config.data.train_files='("train.parquet",)' --config.data.validation_files='("test.parquet",)'

On GPUs also, for one host of 8: --config.cluster.platform=gpu --config.cluster.pools.main.devices_per_host=8
--config.cluster.pools.main.mesh.fsdp=8 --config.actor.model.compute_dtype=bfloat16 --config.rollout.dtype=bfloat16
"""

from ml_collections import ConfigDict

from jaxflow.config import default_config_dict, pool


def get_config() -> ConfigDict:
    """Return the defaults with what this run changes; the model's shape is the checkpoint's."""
    config = default_config_dict()
    config.algorithm.name = "grpo"
    config.cluster.pools = {"main": pool(["actor", "reference", "reward", "estimator"])}

    config.data.prompts_per_step = 64
    config.rollout.samples_per_prompt = 8
    config.data.max_prompt_tokens = 512
    config.rollout.max_response_tokens = 512
    config.actor.minibatch_sequences = 256
    config.actor.optimizer.learning_rate = 1e-6

    # GRPO's pull towards the reference is in the loss.
    config.algorithm.kl.reward_coefficient = 0.0
    config.algorithm.kl.loss_coefficient = 0.001
    return config
