"""What in a config cannot be: every contradiction found at once, before a device is touched.

Knows the whole config and whether files exist; what pools allow it asks of `placement_checks`. Opens no file but
that of an algorithm of the user's, builds no mesh, loads no tokenizer.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import pathlib
import re
from collections.abc import Iterator, Mapping

from jaxflow.algorithms.aggregate import AGGREGATIONS
from jaxflow.algorithms.kl import KL_ESTIMATORS
from jaxflow.batch_algebra import longest_sequence_tokens
from jaxflow.config import Config, flatten, refuse
from jaxflow.data.tasks import TASKS
from jaxflow.dataflow import load_dataflow
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.optimizer import SCHEDULES
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.placement_checks import mesh_problems, role_problems, row_problems, sharding_problems
from jaxflow.types import UserError

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
    "reward.kind": ("function", "model"),
    "reward.model.compute_dtype": _DTYPES,
    "rollout.dtype": _DTYPES,
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
# A pool's name in a key is written as *.
_RANGES: Mapping[str, _Range] = {
    **{f"{role}.{key}": allowed for role in ("actor", "critic") for key, allowed in _ROLE_RANGES.items()},
    **{f"reward.model.{key}": allowed for key, allowed in _MODEL_RANGES.items()},
    "run.seed": _Range(0, 2**32 - 1),  # what a JAX key takes without 64-bit mode
    "run.total_steps": _FROM_ONE,
    "run.evaluate_every_steps": _FROM_ZERO,
    "checkpoint.every_steps": _FROM_ZERO,
    "checkpoint.every_minutes": _FROM_ZERO,
    "checkpoint.keep": _FROM_ONE,
    **dict.fromkeys(("cluster.pools.*.hosts", "cluster.pools.*.devices_per_host"), _FROM_ONE),
    **dict.fromkeys(
        (f"cluster.pools.*.mesh.{axis}" for axis in ("data", "fsdp", "tensor", "generation_tensor")),
        _FROM_ONE,
    ),
    **dict.fromkeys(
        (f"cluster.{limit}_timeout_seconds" for limit in ("start", "heartbeat", "stage")), _ABOVE_ZERO
    ),
    "cluster.max_restarts": _FROM_ZERO,
    "data.prompts_per_step": _FROM_ONE,
    "data.validation_prompts": _FROM_ZERO,
    "data.max_prompt_tokens": _FROM_ONE,
    "rollout.samples_per_prompt": _FROM_ONE,
    "rollout.max_response_tokens": _FROM_ONE,
    "rollout.temperature": _FROM_ZERO,
    "rollout.top_k": _FROM_ZERO,
    "rollout.top_p": _Range(0, 1, low_open=True),
    "rollout.sequences_per_device": _FROM_ONE,
    "rollout.parts": _FROM_ONE,
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
    "warm_start.reward_steps": _FROM_ZERO,
    "warm_start.reward_learning_rate": _FROM_ZERO,
    "tracking.samples_per_evaluation": _FROM_ZERO,
    "tracking.timeline_steps": _FROM_ZERO,
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
        *_reward_problems(config),
        *_address_problems(config),
        *_cast_problems(config),
        *mesh_problems(config, devices_available),
    ]
    # Sizes below one are reported above; nothing can be divided by them.
    if all(value >= 1 for key, value in _numbers(config) if _RANGES.get(_general(key)) == _FROM_ONE):
        for path, model in _models(config):
            problems += _model_problems(path, model, vocabulary_size)
        problems += sharding_problems(config, vocabulary_size)
        problems += row_problems(config)
        problems += _token_problems(config)
        problems += _rule_problems(config)
    refuse("the config", problems)


def _general(key: str) -> str:
    """Write a key of one pool as the key of all."""
    return re.sub(r"^cluster\.pools\.[^.]+\.", "cluster.pools.*.", key)


def _models(config: Config) -> Iterator[tuple[str, DecoderConfig]]:
    """Yield the models that the config shapes, under their keys."""
    yield "actor.model", config.actor.model
    if config.critic.model is not None:
        yield "critic.model", config.critic.model
    if config.reward.model is not None:
        yield "reward.model", config.reward.model


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
        allowed = _RANGES.get(_general(key))
        if allowed is not None and not allowed.holds(value):
            yield f"{key} = {value}: must be {allowed}"


def _cast_problems(config: Config) -> Iterator[str]:
    try:
        cast = load_dataflow(config.algorithm.name).cast
    except UserError as error:
        yield str(error)
        return
    yield from role_problems(config, cast)


def _address_problems(config: Config) -> Iterator[str]:
    address = config.cluster.address
    if not address:
        return
    if re.fullmatch(r"auto|[^/\s]+:\d+", address) is None:
        yield f"cluster.address = {address!r}: must be empty, auto or host:port"
    if config.cluster.launcher == "inprocess":
        yield (
            f"cluster.address = {address!r}: the launcher inprocess starts no workers elsewhere; set the address"
            " to '' or cluster.launcher to ray"
        )


def _model_problems(path: str, model: DecoderConfig, vocabulary_size: int | None) -> Iterator[str]:
    if model.heads % model.kv_heads != 0:
        yield f"{path}.kv_heads = {model.kv_heads} does not divide {path}.heads = {model.heads}"
    if model.head_width % 2 != 0:
        yield f"{path}.head_width = {model.head_width}: rotary positions turn pairs; make it even"
    if vocabulary_size is not None and 0 < model.vocabulary_size < vocabulary_size:
        yield (
            f"{path}.vocabulary_size = {model.vocabulary_size}, but the tokenizer has {vocabulary_size}"
            " tokens; set it to 0 (taken from the tokenizer) or to at least as many"
        )


def _token_problems(config: Config) -> Iterator[str]:
    """Say which micro-batches cannot hold the longest sequence that they may get."""
    longest = longest_sequence_tokens(config)
    # A reward model is read one position past the end; a wrong answer may be one token longer than a right one.
    judged = 1 if config.reward.kind == "model" else 0
    taught = 2 if judged and config.warm_start.reward_steps > 0 else 0
    for path, tokens, more in (
        ("actor.microbatch_tokens_per_device", config.actor.microbatch_tokens_per_device, taught),
        ("critic.microbatch_tokens_per_device", config.critic.microbatch_tokens_per_device, 0),
        (
            "rollout.score_microbatch_tokens_per_device",
            config.rollout.score_microbatch_tokens_per_device,
            judged,
        ),
    ):
        padded = ladder(longest + more, LENGTH_UNIT)
        if tokens < padded:
            reward_model = f", {longest + more} with the reward model's" if more else ""
            yield (
                f"{path} = {tokens} cannot hold the longest sequence: data.max_prompt_tokens"
                f" {config.data.max_prompt_tokens} + rollout.max_response_tokens"
                f" {config.rollout.max_response_tokens} = {longest}{reward_model}, {padded} when padded;"
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


def _reward_problems(config: Config) -> Iterator[str]:
    reward, steps = config.reward, config.warm_start.reward_steps
    if reward.kind == "model":
        if not reward.weights and steps == 0:
            yield (
                "reward.kind = 'model' without weights: set reward.weights to their directory, or"
                " warm_start.reward_steps above 0 to learn them"
            )
        if reward.weights and steps > 0:
            yield (
                f"warm_start.reward_steps = {steps}, but reward.weights are given and would not be learnt; set one"
                " to 0 or the other to ''"
            )
        return
    for key, is_set in (
        ("reward.weights", bool(reward.weights)),
        ("reward.model", reward.model is not None),
        ("warm_start.reward_steps", steps > 0),
    ):
        if is_set:
            yield f"{key} is of a reward model, and reward.kind = {reward.kind!r}: unset it, or set the kind to model"


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
    if data.train_files and config.warm_start.reward_steps > 0:
        yield (
            "warm_start.reward_steps > 0 learns from the built-in task's answers, which data.train_files replaces;"
            " set it to 0 and reward.weights to a model's"
        )
    if data.tokenizer and not data.train_files:
        yield "data.tokenizer without data.train_files: a built-in task has its own tokenizer; set it to ''"
    if data.validation_files and not data.train_files:
        yield "data.validation_files without data.train_files: a built-in task validates on its own rows"
    for key, directory in (
        ("data.tokenizer", data.tokenizer),
        ("actor.weights", config.actor.weights),
        ("critic.weights", config.critic.weights),
        ("reward.weights", config.reward.weights),
    ):
        if directory and not pathlib.Path(directory).is_dir():
            yield f"{key}: no such directory: {directory}"
    source, _, name = function.rpartition(":")
    if function and not (source and name.isidentifier()):
        yield f"reward.function = {function!r}: expected path.py:function"
    elif function and not pathlib.Path(source).is_file():
        yield f"reward.function: no such file: {source}"
