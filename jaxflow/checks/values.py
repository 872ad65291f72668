"""What single keys may hold: choices and ranges. Knows no relation between keys.

A new key with limits gets its line here; what several keys say together is checked beside the room they are of.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping

from jaxflow.algorithms.advantages import ESTIMATORS
from jaxflow.algorithms.aggregate import AGGREGATIONS
from jaxflow.algorithms.importance import BOUNDS, LEVELS
from jaxflow.algorithms.kl import KL_LOSS_ESTIMATORS, KL_REWARD_ESTIMATORS
from jaxflow.algorithms.objectives import OBJECTIVES
from jaxflow.algorithms.selection import DYNAMIC_SAMPLING_METRICS, REWEIGHTINGS
from jaxflow.config import Config, flatten
from jaxflow.data.tasks import TASKS
from jaxflow.engine.optimizer import SCHEDULES
from jaxflow.rewards.scorers import SCORERS

_DTYPES = ("float32", "bfloat16")
_JUDGES = ("reward", "cost")
_MODELS = ("actor", "critic", *_JUDGES)


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "checkpoint.resume": ("auto", "never"),
    "cluster.launcher": ("ray", "inprocess"),
    "cluster.mapping": ("pools", "auto"),
    "cluster.platform": ("cpu", "gpu"),
    "data.overlong_prompts": ("drop", "error"),
    "actor.model.compute_dtype": _DTYPES,
    "actor.optimizer.schedule": SCHEDULES,
    "critic.model.compute_dtype": _DTYPES,
    "critic.optimizer.schedule": SCHEDULES,
    **{f"{role}.lora.base_dtype": _DTYPES for role in ("actor", "critic")},
    **{f"{judge}.kind": ("function", "model") for judge in _JUDGES},
    **{f"{judge}.model_score": ("probability", "number") for judge in _JUDGES},
    **{f"{judge}.optimizer.schedule": SCHEDULES for judge in _JUDGES},
    "algorithm.preference.loss": ("sigmoid", "ipo"),
    **{f"{judge}.manager": ("naive", "dapo", "batch") for judge in _JUDGES},
    **{f"{judge}.scorer": ("", *SCORERS) for judge in _JUDGES},
    **{f"{judge}.model.compute_dtype": _DTYPES for judge in _JUDGES},
    **{f"{role}.model.activation": ("silu", "gelu_tanh") for role in _MODELS},
    **{f"{role}.model.rope_scaling": ("none", "linear", "llama3") for role in _MODELS},
    "rollout.dtype": _DTYPES,
    "algorithm.estimator": ("", *ESTIMATORS),
    "algorithm.objective": OBJECTIVES,
    "algorithm.loss_aggregation": AGGREGATIONS,
    "algorithm.kl.reward_estimator": KL_REWARD_ESTIMATORS,
    "algorithm.kl.loss_estimator": KL_LOSS_ESTIMATORS,
    "algorithm.kl.controller": ("fixed", "adaptive"),
    "algorithm.off_policy.level": ("off", *LEVELS),
    "algorithm.off_policy.bounds": BOUNDS,
    "algorithm.off_policy.rejection": ("off", *LEVELS),
    "algorithm.dynamic_sampling.metric": DYNAMIC_SAMPLING_METRICS,
    "algorithm.reweighting.method": ("off", *REWEIGHTINGS),
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
    **dict.fromkeys(("rope_theta", "norm_epsilon", "rope_factor"), _ABOVE_ZERO),
    **dict.fromkeys(("rope_low_frequency_factor", "rope_high_frequency_factor"), _ABOVE_ZERO),
    "rope_original_positions": _FROM_ONE,
    **dict.fromkeys(("query_scale", "attention_softcap", "logit_softcap", "local_rope_theta"), _FROM_ZERO),
    **dict.fromkeys(("sliding_window", "global_every", "head_padding"), _FROM_ZERO),
    **dict.fromkeys(("experts", "experts_per_token"), _FROM_ZERO),
    "vocabulary_multiple": _FROM_ONE,
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
    "lora.rank": _FROM_ZERO,
    "lora.alpha": _ABOVE_ZERO,
    **{f"model.{key}": allowed for key, allowed in _MODEL_RANGES.items()},
}


_JUDGE_RANGES: Mapping[str, _Range] = {
    "max_failed_fraction": _UP_TO_ONE,
    "processes": _FROM_ONE,
    "timeout_seconds": _ABOVE_ZERO,
    "memory_megabytes": _FROM_ONE,
    "overlong_buffer_tokens": _FROM_ZERO,
    "overlong_penalty_factor": _FROM_ZERO,
}


# A pool's name in a key is written as *.
_RANGES: Mapping[str, _Range] = {
    **{
        f"{role}.{key}": allowed
        for role in ("actor", "critic", "reward", "cost")
        for key, allowed in _ROLE_RANGES.items()
    },
    "reward.center_coefficient": _FROM_ZERO,
    "actor.router_aux_loss_coefficient": _FROM_ZERO,
    "critic.router_aux_loss_coefficient": _FROM_ZERO,
    "algorithm.preference.beta": _ABOVE_ZERO,
    "algorithm.preference.label_smoothing": _Range(0, 0.5, high_open=True),
    "algorithm.preference.desirable_weight": _ABOVE_ZERO,
    "algorithm.preference.undesirable_weight": _ABOVE_ZERO,
    "run.total_epochs": _FROM_ZERO,
    **{
        f"{judge}.model.{key}": allowed
        for judge in ("reward", "cost")
        for key, allowed in _MODEL_RANGES.items()
    },
    "run.seed": _Range(0, 2**32 - 1),  # what a JAX key takes without 64-bit mode
    "run.total_steps": _FROM_ONE,
    "run.evaluate_every_steps": _FROM_ZERO,
    "checkpoint.every_steps": _FROM_ZERO,
    "checkpoint.every_minutes": _FROM_ZERO,
    "checkpoint.keep": _FROM_ONE,
    **dict.fromkeys(("cluster.pools.*.hosts", "cluster.pools.*.devices_per_host"), _FROM_ONE),
    **dict.fromkeys(
        (
            f"cluster.pools.*.mesh.{axis}"
            for axis in ("data", "fsdp", "tensor", "generation_tensor", "pipe", "generation_pipe", "expert")
        ),
        _FROM_ONE,
    ),
    **dict.fromkeys(
        (f"cluster.{limit}_timeout_seconds" for limit in ("start", "heartbeat", "stage")), _ABOVE_ZERO
    ),
    **dict.fromkeys(
        (
            f"cluster.{devices}.{key}"
            for devices in ("devices", "more_devices.*")
            for key in ("hosts", "devices_per_host")
        ),
        _FROM_ONE,
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
    "rollout.min_p": _BELOW_ONE,
    "rollout.min_response_tokens": _FROM_ZERO,
    "rollout.sequences_per_device": _FROM_ONE,
    "rollout.token_budget": _FROM_ZERO,
    "rollout.deadline_seconds": _FROM_ZERO,
    "rollout.parts": _FROM_ONE,
    "rollout.score_microbatch_tokens_per_device": _FROM_ONE,
    "rollout.validation_temperature": _FROM_ZERO,
    "rollout.validation_samples": _FROM_ONE,
    "critic.warmup_steps": _FROM_ZERO,
    **{f"{judge}.{key}": allowed for judge in _JUDGES for key, allowed in _JUDGE_RANGES.items()},
    "algorithm.discount": _UP_TO_ONE,
    "algorithm.gae_lambda": _UP_TO_ONE,
    "algorithm.clip_ratio_low": _BELOW_ONE,  # the lower bound 1 − this stays a ratio: above 0
    "algorithm.clip_ratio_high": _FROM_ZERO,
    "algorithm.gspo.clip_ratio_low": _BELOW_ONE,
    "algorithm.gspo.clip_ratio_high": _FROM_ZERO,
    "algorithm.cispo.clip_ratio_low": _UP_TO_ONE,
    "algorithm.cispo.clip_ratio_high": _FROM_ZERO,
    "algorithm.geo_mean.clip_log_ratio_low": _FROM_ZERO,
    "algorithm.geo_mean.clip_log_ratio_high": _FROM_ZERO,
    "algorithm.sapo.temperature_positive": _ABOVE_ZERO,
    "algorithm.sapo.temperature_negative": _ABOVE_ZERO,
    "algorithm.dppo.tv_bound": _UP_TO_ONE,
    "algorithm.dppo.kl_bound": _FROM_ZERO,
    "algorithm.dppo.ratio_bound": _FROM_ONE,
    "algorithm.clip_cov.fraction": _UP_TO_ONE,
    "algorithm.kl_cov.fraction": _UP_TO_ONE,
    "algorithm.kl_cov.coefficient": _FROM_ZERO,
    "algorithm.value_clip": _FROM_ZERO,
    "algorithm.score_bound": _FROM_ZERO,
    "algorithm.ptx_coefficient": _FROM_ZERO,
    "algorithm.entropy_coefficient": _FROM_ZERO,
    "algorithm.kl.reward_coefficient": _FROM_ZERO,
    "algorithm.kl.target": _ABOVE_ZERO,
    "algorithm.kl.horizon_sequences": _ABOVE_ZERO,
    "algorithm.kl.loss_coefficient": _FROM_ZERO,
    "algorithm.off_policy.lower": _FROM_ZERO,
    "algorithm.off_policy.upper": _ABOVE_ZERO,
    "algorithm.off_policy.rejection_lower": _FROM_ZERO,
    "algorithm.off_policy.rejection_upper": _ABOVE_ZERO,
    "algorithm.off_policy.negative_sequence_bound": _FROM_ZERO,
    "algorithm.dynamic_sampling.max_refills": _FROM_ZERO,
    "algorithm.reweighting.power": _FROM_ZERO,
    "algorithm.lagrange.initial": _ABOVE_ZERO,  # it moves by factors
    "algorithm.lagrange.learning_rate": _FROM_ZERO,
    "algorithm.lagrange.maximum": _ABOVE_ZERO,
    "algorithm.lagrange.window_episodes": _FROM_ONE,
    "warm_start.steps": _FROM_ZERO,
    "warm_start.sequences_per_step": _FROM_ONE,
    "warm_start.learning_rate": _FROM_ZERO,
    "warm_start.reward_steps": _FROM_ZERO,
    "warm_start.reward_learning_rate": _FROM_ZERO,
    "tracking.samples_per_evaluation": _FROM_ZERO,
    "tracking.timeline_steps": _FROM_ZERO,
}


def _general(key: str) -> str:
    """Write a key of one pool, or of one more kind of devices, as the key of all."""
    return re.sub(r"^cluster\.(pools|more_devices)\.[^.]+\.", r"cluster.\1.*.", key)


def _numbers(config: Config) -> Iterator[tuple[str, float]]:
    return ((key, value) for key, value in flatten(config).items() if isinstance(value, int | float))


def wrong_names(config: Config) -> Iterator[str]:
    choices = _CHOICES if config.data.train_files else {**_CHOICES, "data.task": tuple(TASKS)}
    for key, value in flatten(config).items():
        if key == "algorithm.objective" and ":" in value:
            continue  # a function of the user's
        if key in choices and value not in choices[key]:
            alike = difflib.get_close_matches(str(value), choices[key], n=1)
            hint = f"did you mean {alike[0]!r}? " if alike else ""
            yield f"{key} = {value!r}: {hint}it is one of: {', '.join(choices[key])}"


def out_of_range(config: Config) -> Iterator[str]:
    for key, value in _numbers(config):
        allowed = _RANGES.get(_general(key))
        if allowed is not None and not allowed.holds(value):
            yield f"{key} = {value}: must be {allowed}"


def countable(config: Config) -> bool:
    """Return whether every size that must be at least one is: else nothing can be divided by it."""
    return all(value >= 1 for key, value in _numbers(config) if _RANGES.get(_general(key)) == _FROM_ONE)
