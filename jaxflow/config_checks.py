"""What in a config cannot be: every contradiction found at once, before a device is touched.

Knows the whole config and whether files exist. Opens no file, builds no mesh, loads no tokenizer.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import pathlib
from collections.abc import Iterator, Mapping

from jaxflow.algorithms.aggregate import AGGREGATIONS
from jaxflow.algorithms.kl import KL_ESTIMATORS
from jaxflow.batch_algebra import (
    longest_sequence_tokens,
    mesh_sizes,
    sequences_per_step,
    with_vocabulary,
)
from jaxflow.config import Config, flatten, refuse
from jaxflow.data.tasks import TASKS
from jaxflow.dataflow import DATAFLOWS
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.optimizer import SCHEDULES
from jaxflow.models.decoder_config import DecoderConfig

_DTYPES = ("float32", "bfloat16")

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "checkpoint.resume": ("auto", "never"),
    "cluster.launcher": ("ray", "inprocess"),
    "cluster.platform": ("cpu", "gpu"),
    "data.overlong_prompts": ("drop", "error"),
    "actor.model.compute_dtype": _DTYPES,
    "actor.optimizer.schedule": SCHEDULES,
    "critic.model.compute_dtype": _DTYPES,
    "critic.optimizer.schedule": SCHEDULES,
    "rollout.dtype": _DTYPES,
    "algorithm.name": tuple(DATAFLOWS),
    "algorithm.loss_aggregation": tuple(AGGREGATIONS),
    "algorithm.kl.reward_estimator": tuple(KL_ESTIMATORS),
    "algorithm.kl.loss_estimator": tuple(KL_ESTIMATORS),
    "algorithm.kl.controller": ("fixed", "adaptive"),
}


@dataclasses.dataclass(frozen=True)
class _Range:
    """Numbers from `low` to `high`, the ends included unless open."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, number: float) -> bool:
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.low_open else 'at least'} {self.low:g}"
        return (
            f"in {'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"
        )


_FROM_ZERO, _FROM_ONE, _ABOVE_ZERO = _Range(0), _Range(1), _Range(0, low_open=True)
_UP_TO_ONE, _BELOW_ONE = _Range(0, 1), _Range(0, 1, high_open=True)

_MODEL_RANGES: Mapping[str, _Range] = {
    "vocabulary_size": _FROM_ZERO,
    **dict.fromkeys(("width", "layers", "heads", "kv_heads", "head_width", "mlp_width"), _FROM_ONE),
    **dict.fromkeys(("rope_theta", "norm_epsilon"), _ABOVE_ZERO),
}
_ROLE_RANGES: Mapping[str, _Range] = {
    **dict.fromkeys(("update_epochs", "minibatch_sequences", "microbatch_tokens_per_device"), _FROM_ONE),
    **dict.fromkeys(
        ("optimizer.learning_rate", "optimizer.warmup_updates", "optimizer.weight_decay"), _FROM_ZERO
    ),
    **dict.fromkeys(("optimizer.clip_norm", "optimizer.max_skipped_updates"), _FROM_ZERO),
    **dict.fromkeys(("optimizer.beta1", "optimizer.beta2"), _BELOW_ONE),
    "optimizer.final_fraction": _UP_TO_ONE,
    "optimizer.epsilon": _ABOVE_ZERO,
    **{f"model.{key}": allowed for key, allowed in _MODEL_RANGES.items()},
}
_RANGES: Mapping[str, _Range] = {
    **{f"{role}.{key}": allowed for role in ("actor", "critic") for key, allowed in _ROLE_RANGES.items()},
    "run.seed": _Range(0, 2**32 - 1),  # what a JAX key takes without 64-bit mode
    "run.total_steps": _FROM_ONE,
    "run.evaluate_every_steps": _FROM_ZERO,
    "checkpoint.every_steps": _FROM_ZERO,
    "checkpoint.every_minutes": _FROM_ZERO,
    "checkpoint.keep": _FROM_ONE,
    "cluster.devices": _FROM_ONE,
    "cluster.start_timeout_seconds": _ABOVE_ZERO,
    **dict.fromkeys(
        (f"cluster.mesh.{axis}" for axis in ("data", "fsdp", "tensor", "generation_tensor")), _FROM_ONE
    ),
    "data.prompts_per_step": _FROM_ONE,
    "data.validation_prompts": _FROM_ZERO,
    "data.max_prompt_tokens": _FROM_ONE,
    "rollout.samples_per_prompt": _FROM_ONE,
    "rollout.max_response_tokens": _FROM_ONE,
    "rollout.temperature": _FROM_ZERO,
    "rollout.top_k": _FROM_ZERO,
    "rollout.top_p": _Range(0, 1, low_open=True),
    "rollout.sequences_per_device": _FROM_ONE,
    "rollout.score_microbatch_tokens_per_device": _FROM_ONE,
    "rollout.validation_temperature": _FROM_ZERO,
    "reward.max_failed_fraction": _UP_TO_ONE,
    "algorithm.discount": _UP_TO_ONE,
    "algorithm.gae_lambda": _UP_TO_ONE,
    "algorithm.clip_ratio_low": _BELOW_ONE,  # the lower bound 1 − this stays a ratio: above 0
    "algorithm.clip_ratio_high": _FROM_ZERO,
    "algorithm.value_clip": _FROM_ZERO,
    "algorithm.entropy_coefficient": _FROM_ZERO,
    "algorithm.kl.reward_coefficient": _FROM_ZERO,
    "algorithm.kl.target": _ABOVE_ZERO,
    "algorithm.kl.horizon_sequences": _ABOVE_ZERO,
    "algorithm.kl.loss_coefficient": _FROM_ZERO,
    "warm_start.steps": _FROM_ZERO,
    "warm_start.sequences_per_step": _FROM_ONE,
    "warm_start.learning_rate": _FROM_ZERO,
    "tracking.samples_per_evaluation": _FROM_ZERO,
}


def check(config: Config, vocabulary_size: int | None, devices_available: int | None) -> None:
    """Refuse a config that contradicts itself, its files or the machine.

    `vocabulary_size` is the tokenizer's and `devices_available` the machine's; None where not known (yet).
    Raises `UserError` with every problem found: what, where, how to mend it.
    """
    problems = [
        *_wrong_names(config),
        *_out_of_range(config),
        *_file_problems(config),
        *_task_problems(config),
    ]
    problems += _device_problems(config, devices_available)
    # Sizes below one are reported above; nothing can be divided by them.
    if all(value >= 1 for key, value in _numbers(config) if _RANGES.get(key) == _FROM_ONE):
        problems += _model_problems("actor.model", config.actor.model, config, vocabulary_size)
        if config.critic.model is not None:
            problems += _model_problems("critic.model", config.critic.model, config, vocabulary_size)
        problems += _batch_problems(config)
        problems += _rule_problems(config)
    refuse("the config", problems)


def _numbers(config: Config) -> Iterator[tuple[str, float]]:
    return ((key, value) for key, value in flatten(config).items() if isinstance(value, int | float))


def _wrong_names(config: Config) -> Iterator[str]:
    choices = _CHOICES if config.data.train_files else {**_CHOICES, "data.task": tuple(TASKS)}
    for key, value in flatten(config).items():
        if key in choices and value not in choices[key]:
            alike = difflib.get_close_matches(str(value), choices[key], n=1)
            hint = f"did you mean {alike[0]!r}? " if alike else ""
            yield f"{key} = {value!r}: {hint}it is one of: {', '.join(choices[key])}"


def _out_of_range(config: Config) -> Iterator[str]:
    for key, value in _numbers(config):
        if key in _RANGES and not _RANGES[key].holds(value):
            yield f"{key} = {value}: must be {_RANGES[key]}"


def _device_problems(config: Config, devices_available: int | None) -> Iterator[str]:
    mesh, devices = config.cluster.mesh, config.cluster.devices
    product = mesh.data * mesh.fsdp * mesh.tensor
    if product != devices:
        yield (
            f"cluster.mesh: data {mesh.data} × fsdp {mesh.fsdp} × tensor {mesh.tensor} = {product} devices,"
            f" but cluster.devices = {devices}; set cluster.devices to {product} or change an axis"
        )
    if mesh.generation_tensor > 0 and mesh.tensor % mesh.generation_tensor != 0:
        yield (
            f"cluster.mesh.generation_tensor = {mesh.generation_tensor} does not divide cluster.mesh.tensor ="
            f" {mesh.tensor}; set it to one of: {', '.join(map(str, _divisors(mesh.tensor)))}"
        )
    if devices_available is not None and devices > devices_available:
        yield (
            f"cluster.devices = {devices}, but this machine has {devices_available}"
            f" ({config.cluster.platform}); set cluster.devices and the axes of cluster.mesh to fit"
        )


def _model_problems(
    path: str, model: DecoderConfig, config: Config, vocabulary_size: int | None
) -> Iterator[str]:
    mesh = config.cluster.mesh
    if model.heads % model.kv_heads != 0:
        yield f"{path}.kv_heads = {model.kv_heads} does not divide {path}.heads = {model.heads}"
    if model.head_width % 2 != 0:
        yield f"{path}.head_width = {model.head_width}: rotary positions turn pairs; make it even"
    sharded = [
        ("heads", model.heads, "tensor", mesh.tensor),
        ("kv_heads", model.kv_heads, "tensor", mesh.tensor),
    ]
    sharded += [
        ("mlp_width", model.mlp_width, "tensor", mesh.tensor),
        ("width", model.width, "fsdp", mesh.fsdp),
    ]
    for key, size, axis, ways in sharded:
        if size % ways != 0:
            yield (
                f"{path}.{key} = {size} cannot be split over cluster.mesh.{axis} = {ways};"
                f" set the axis to a divisor of {size}, or {key} to a multiple of {ways}"
            )
    known = with_vocabulary(model, 0 if vocabulary_size is None else vocabulary_size)
    if known.padded_vocabulary_size % mesh.tensor != 0:
        yield (
            f"cluster.mesh.tensor = {mesh.tensor} cannot split the vocabulary of {path}, padded to"
            f" {known.padded_vocabulary_size}; set it to a power of two"
        )
    if vocabulary_size is not None and 0 < model.vocabulary_size < vocabulary_size:
        yield (
            f"{path}.vocabulary_size = {model.vocabulary_size}, but the tokenizer has {vocabulary_size}"
            " tokens; set it to 0 (taken from the tokenizer) or to at least as many"
        )


def _batch_problems(config: Config) -> Iterator[str]:
    mesh, sequences = mesh_sizes(config), sequences_per_step(config)
    product = (
        f"data.prompts_per_step {config.data.prompts_per_step} × "
        f"rollout.samples_per_prompt {config.rollout.samples_per_prompt}"
    )
    fitting = [size for size in _divisors(sequences) if size % mesh.training_replicas == 0]
    for path, size in (
        ("actor.minibatch_sequences", config.actor.minibatch_sequences),
        ("critic.minibatch_sequences", config.critic.minibatch_sequences),
    ):
        if size not in fitting:
            nearest = min(fitting, key=lambda fit, size=size: abs(fit - size), default=None)
            mend = f"set it to {nearest}" if nearest is not None else f"no size does both: change {product}"
            yield (
                f"{path} = {size} sequences over all devices: must divide the {sequences} sequences of a step"
                f" ({product}) and be a multiple of the {mesh.training_replicas} training replicas"
                f" (data × fsdp); {mend}"
            )
    # A mesh whose generation size does not divide is reported already.
    if mesh.tensor * mesh.micro == config.cluster.mesh.tensor and sequences % mesh.generation_replicas != 0:
        yield (
            f"{product} = {sequences} sequences per step cannot be split over the {mesh.generation_replicas}"
            " generation replicas (data × fsdp × tensor / generation_tensor); make it a multiple"
        )
    if config.warm_start.steps > 0 and config.warm_start.sequences_per_step % mesh.training_replicas != 0:
        yield (
            f"warm_start.sequences_per_step = {config.warm_start.sequences_per_step} is not a multiple of the"
            f" {mesh.training_replicas} training replicas (data × fsdp)"
        )
    longest = longest_sequence_tokens(config)
    padded = ladder(longest, LENGTH_UNIT)
    for path, tokens in (
        ("actor.microbatch_tokens_per_device", config.actor.microbatch_tokens_per_device),
        ("critic.microbatch_tokens_per_device", config.critic.microbatch_tokens_per_device),
        ("rollout.score_microbatch_tokens_per_device", config.rollout.score_microbatch_tokens_per_device),
    ):
        if tokens < padded:
            yield (
                f"{path} = {tokens} cannot hold the longest sequence: data.max_prompt_tokens"
                f" {config.data.max_prompt_tokens} + rollout.max_response_tokens"
                f" {config.rollout.max_response_tokens} = {longest}, {padded} when padded;"
                f" set it to at least {padded}"
            )


def _rule_problems(config: Config) -> Iterator[str]:
    rule, kl = config.algorithm, config.algorithm.kl
    if rule.dual_clip != 0.0 and rule.dual_clip <= 1.0:
        yield f"algorithm.dual_clip = {rule.dual_clip}: must be above 1, or 0 to switch it off"
    if kl.controller == "adaptive" and kl.reward_coefficient == 0.0:
        yield (
            "algorithm.kl.reward_coefficient = 0 with algorithm.kl.controller = adaptive: the controller"
            " multiplies, so it would stay 0; start above 0 or set the controller to fixed"
        )


def _task_problems(config: Config) -> Iterator[str]:
    if config.data.train_files or config.data.task not in TASKS:
        return
    task = TASKS[config.data.task]()
    for path, tokens, needed in (
        ("data.max_prompt_tokens", config.data.max_prompt_tokens, task.max_prompt_tokens),
        ("rollout.max_response_tokens", config.rollout.max_response_tokens, task.max_response_tokens),
    ):
        if tokens < needed:
            yield f"{path} = {tokens}: the task {task.name} needs {needed}; set it to at least {needed}"


def _file_problems(config: Config) -> Iterator[str]:
    data, function = config.data, config.reward.function
    for key, files in (("train_files", data.train_files), ("validation_files", data.validation_files)):
        for file in map(pathlib.Path, files):
            if file.suffix not in (".jsonl", ".parquet"):
                yield f"data.{key}: {file} is neither .jsonl nor .parquet"
            elif not file.is_file():
                yield f"data.{key}: no such file: {file}"
    if data.train_files and not data.tokenizer:
        yield "data.train_files needs data.tokenizer: the directory of a Hugging Face tokenizer"
    if data.train_files and not function:
        yield "data.train_files needs reward.function: path.py:function"
    if data.train_files and config.warm_start.steps > 0:
        yield "warm_start.steps > 0 imitates the built-in task, which data.train_files replaces; set it to 0"
    if data.tokenizer and not data.train_files:
        yield "data.tokenizer without data.train_files: a built-in task has its own tokenizer; set it to ''"
    if data.validation_files and not data.train_files:
        yield "data.validation_files without data.train_files: a built-in task validates on its own rows"
    for key, directory in (
        ("data.tokenizer", data.tokenizer),
        ("actor.weights", config.actor.weights),
        ("critic.weights", config.critic.weights),
    ):
        if directory and not pathlib.Path(directory).is_dir():
            yield f"{key}: no such directory: {directory}"
    source, _, name = function.rpartition(":")
    if function and not (source and name.isidentifier()):
        yield f"reward.function = {function!r}: expected path.py:function"
    elif function and not pathlib.Path(source).is_file():
        yield f"reward.function: no such file: {source}"


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
