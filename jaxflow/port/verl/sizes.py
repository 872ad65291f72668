"""What several settings need to know of a verl config: which engine, how many devices, sequences, steps, tokens.

Pure arithmetic on verl's values in verl's units. Knows no key of jaxflow.
"""

from __future__ import annotations

import math

from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.port.table import Values

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
REFERENCE = "actor_rollout_ref.ref"
MODEL = "actor_rollout_ref.model"


def is_megatron(values: Values) -> bool:
    """Return whether training runs in Megatron, whose parallelism has keys of its own."""
    files = (values["config-name"], values["defaults"], values["actor@actor_rollout_ref.actor"])
    return "megatron" in (values["model_engine"], values[f"{ACTOR}.strategy"]) or "megatron" in str(files)


def has_critic(values: Values) -> bool:
    """Return whether a critic is trained: only the estimator gae reads one."""
    return values["algorithm.adv_estimator"] == "gae"


def has_reference(values: Values) -> bool:
    """Return whether verl loads a reference model: for a KL in the reward or in the loss."""
    return bool(values["algorithm.use_kl_in_reward"]) or bool(values[f"{ACTOR}.use_kl_loss"])


def devices(values: Values) -> int:
    """Return all devices that training runs on."""
    return values["trainer.nnodes"] * values["trainer.n_gpus_per_node"]


def longest_tokens(values: Values) -> int:
    """Return the tokens of the longest sequence, padded as jaxflow pads it."""
    return ladder(values["data.max_prompt_length"] + values["data.max_response_length"], LENGTH_UNIT)


def updates_per_step(values: Values, role: str) -> int:
    """Return the optimizer updates that one step makes of a role's model."""
    minibatches = max(1, values["data.train_batch_size"] // values[f"{role}.ppo_mini_batch_size"])
    return minibatches * values[f"{role}.ppo_epochs"]


def total_steps(values: Values) -> int | None:
    """Return the steps of the run: as given, or whole batches of the data over the epochs; None: nobody knows."""
    given = values["trainer.total_training_steps"]
    if given is not None:
        return int(given)
    if values.rows is None:
        return None
    return values.rows // values["data.train_batch_size"] * values["trainer.total_epochs"]


def training_parallelism(values: Values) -> tuple[int, int, int]:
    """Return the tensor, pipeline and expert parallel sizes of training; FSDP has none of them."""
    if not is_megatron(values):
        return 1, 1, 1
    axes = ("tensor", "pipeline", "expert")
    tensor, pipeline, expert = (values[f"{ACTOR}.megatron.{axis}_model_parallel_size"] for axis in axes)
    return tensor, pipeline, expert


def tensor_size(values: Values) -> int:
    """Return the tensor axis of one mesh that trains as asked and splits into the rollout's tensor groups."""
    return math.lcm(training_parallelism(values)[0], generation_tensor_size(values))


def generation_tensor_size(values: Values) -> int:
    """Return the rollout's tensor-parallel size, or the largest divisor of it that leaves room for the pipeline."""
    tensor, pipeline, _ = training_parallelism(values)
    asked, total = values[f"{ROLLOUT}.tensor_model_parallel_size"], devices(values)
    fitting = [
        size
        for size in range(1, asked + 1)
        if asked % size == 0 and total % (math.lcm(tensor, size) * pipeline) == 0
    ]
    return max(fitting, default=1)


def replicas(values: Values) -> int | None:
    """Return the devices left for replicas once tensor and pipeline are cut; None: no whole number."""
    rest, remainder = divmod(devices(values), tensor_size(values) * training_parallelism(values)[1])
    return rest if remainder == 0 else None


def expert_size(values: Values) -> int:
    """Return the expert axis: it is cut from the replicas, and Megatron's may reach into the tensor ranks as well."""
    return math.gcd(training_parallelism(values)[2], replicas(values) or 1)
