"""TRL's GRPO trainer: its own arguments, and what follows from them. Its batch sizes count completions."""

from __future__ import annotations

from collections.abc import Callable

from jaxflow.port.table import Dialect, Idle, Is, Outcome, Refused, Setting, Values, copied, number
from jaxflow.port.trl.grpo_keys import GRPO_KEYS
from jaxflow.port.trl.shared import (
    Sizes,
    epochs_to_steps,
    longest,
    model_directory,
    sequences_per_update,
    shared_settings,
    shown_update,
    tensor_settings,
)

_PROMPT_TOKENS = 512  # where TRL sets no limit: jaxflow's own default

_CLIPPED = {
    "dapo": "token-mean",
    "bnpo": "token-mean",
    "grpo": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}
_AGGREGATIONS = {**_CLIPPED, "cispo": "token-mean", "sapo": "seq-mean-token-mean"}


def _generation_batch(values: Values) -> int:
    """Return the completions of one round of generation."""
    if values["generation_batch_size"] is not None:
        return values["generation_batch_size"]
    per_generation = values["steps_per_generation"]
    if per_generation is None:
        return sequences_per_update(values)
    return sequences_per_update(values) // values["gradient_accumulation_steps"] * per_generation


def _prompts(values: Values) -> int:
    return _generation_batch(values) // values["num_generations"]


def _updates(values: Values) -> int:
    return max(1, _generation_batch(values) // sequences_per_update(values)) * values["num_iterations"]


def _longest(values: Values) -> int:
    prompt = values["max_prompt_length"]
    return longest(_PROMPT_TOKENS if prompt is None else prompt, values["max_completion_length"])


def _steps(values: Values) -> Outcome:
    return epochs_to_steps(values, _prompts(values), _updates(values))


_SIZES = Sizes(_prompts, _updates, _longest, _steps, updates_per_count=lambda values: 1)


def _prompts_per_step(values: Values) -> Outcome:
    completions, samples = _generation_batch(values), values["num_generations"]
    if completions % samples != 0:
        return Refused(
            f"{completions} completions are no whole groups of {samples}, in TRL either", "change one"
        )
    return Is(completions // samples, f"{completions} completions / {samples} per prompt")


def _minibatch(values: Values) -> Outcome:
    per_update, per_round = sequences_per_update(values), _generation_batch(values)
    if per_round % per_update != 0:
        return Refused(
            f"an update takes {per_update} completions, and one round generates {per_round}",
            "generate whole updates: steps_per_generation a multiple of gradient_accumulation_steps",
        )
    return Is(per_update, shown_update(values))


def _objective(values: Values) -> Outcome:
    loss, level = values["loss_type"], values["importance_sampling_level"]
    if loss not in _AGGREGATIONS:
        return Refused(f"jaxflow has no loss_type {loss!r}", f"choose one of {', '.join(_AGGREGATIONS)}")
    if level == "sequence":
        if loss not in _CLIPPED:
            return Refused(f"jaxflow has no {loss} by sequences", "set importance_sampling_level to token")
        return Is("gspo", "importance_sampling_level is sequence")
    return Is(loss if loss in ("cispo", "sapo") else "vanilla", f"loss_type {loss}")


def _aggregation(values: Values) -> Outcome:
    loss = values["loss_type"]
    if loss not in _AGGREGATIONS:
        return Idle("see the objective")
    shown = (
        "bnpo divides by the local batch's tokens, jaxflow by all of the mini-batch" if loss == "bnpo" else ""
    )
    return Is(_AGGREGATIONS[loss], shown)


def _width(which: str, objective: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        chosen = _objective(values)
        if not isinstance(chosen, Is) or chosen.value != objective:
            return Idle(f"read by {objective} alone")
        high = values["epsilon"] if values["epsilon_high"] is None else values["epsilon_high"]
        if objective == "cispo":
            if which == "low":
                return Is(1.0, "TRL bounds the weight above alone")
            return Is(high - 1.0, f"TRL bounds the weight by epsilon_high {high}, jaxflow by 1 + this")
        return Is(float(values["epsilon"] if which == "low" else high))

    return outcome


def _dual_clip(values: Values) -> Outcome:
    delta = values["delta"]
    return Is(0.0, "delta is null: no bound at negative advantages") if delta is None else Is(float(delta))


def _temperature(key: str) -> Callable[[Values], Outcome]:
    return lambda values: (
        Is(float(values[key])) if values["loss_type"] == "sapo" else Idle("of loss_type sapo")
    )


def _by_std(values: Values) -> Outcome:
    named = values["scale_rewards"]
    if named == "batch":
        return Refused("jaxflow divides by the group's deviation, not the batch's", "choose group or none")
    return Is(named in (True, "group", "True", "true"))


def _estimator(values: Values) -> Outcome:
    if values["multi_objective_aggregation"] == "normalize_then_sum":
        return Is("gdpo", "name the rewards that compute_score returns in algorithm.gdpo.components")
    return Is("grpo", "their sum is normalised")


def _correction(which: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        if not values["use_vllm"] or not values["vllm_importance_sampling_correction"]:
            why = "no correction without vLLM: jaxflow's sampler is the model itself"
            return Is("off", why) if which == "level" else Idle(why)
        level, _, bounds = str(values["vllm_importance_sampling_mode"]).partition("_")
        if level not in ("token", "sequence") or bounds not in ("truncate", "mask"):
            return Refused("unknown mode", "choose token or sequence, _truncate or _mask")
        low, high = (values[f"vllm_importance_sampling_clip_{end}"] for end in ("min", "max"))
        if high is None or (bounds == "truncate" and low is not None):
            return Refused("jaxflow truncates above, and masks outside of both bounds", "give clip_max alone")
        return Is({"level": level, "bounds": bounds, "lower": float(low or 0.0), "upper": float(high)}[which])

    return outcome


def _negative_bound(values: Values) -> Outcome:
    bound = values["off_policy_mask_threshold"]
    return Is(0.0, "off") if bound is None else Is(float(bound), "nats")


def _function(values: Values) -> Outcome:
    named = values["reward_funcs"]
    if named is None:
        return Idle("none is named; data.train_files needs one: reward.function = path.py:compute_score")
    return Refused(
        f"{named} take lists of completions", "wrap them: docs/porting.md shows a compute_score around one"
    )


def _kind(values: Values) -> Outcome:
    return Is("function" if values["reward_model_name_or_path"] is None else "model")


def _judge(values: Values) -> Outcome:
    key = "reward_model_name_or_path"
    return Idle("no reward model") if values[key] is None else model_directory(key)(values)


_CORRECTED = ("vllm_importance_sampling_correction", "use_vllm")
_SETTINGS: tuple[Setting, ...] = (
    *shared_settings(_SIZES, "grpo", "beta"),
    *tensor_settings(),
    Setting(
        "run.total_steps",
        ("max_steps", "num_train_epochs", "generation_batch_size", "num_generations", "num_iterations"),
        "steps = updates / updates per round of generation, or epochs × ⌊rows / prompts⌋",
        _steps,
    ),
    Setting("algorithm.name", ("loss_type",), "grpo", lambda values: Is("grpo")),
    Setting(
        "algorithm.estimator",
        ("multi_objective_aggregation",),
        "grpo; gdpo where normalised first",
        _estimator,
    ),
    Setting(
        "algorithm.objective",
        ("loss_type", "importance_sampling_level"),
        "vanilla, cispo, sapo; gspo by sequences",
        _objective,
    ),
    Setting(
        "algorithm.loss_aggregation",
        ("loss_type",),
        ", ".join(f"{old} → {new}" for old, new in _AGGREGATIONS.items()),
        _aggregation,
    ),
    *(
        Setting(f"algorithm.{place}clip_ratio_{which}", reads, how, _width(which, objective))
        for objective, place in (("vanilla", ""), ("gspo", "gspo."), ("cispo", "cispo."))
        for which, reads, how in (
            (
                "low",
                ("epsilon", "loss_type"),
                f"of {objective}" + (": none, 1" if objective == "cispo" else ""),
            ),
            (
                "high",
                ("epsilon_high", "epsilon", "loss_type"),
                f"of {objective}" + (": − 1" if objective == "cispo" else "; null is epsilon"),
            ),
        )
    ),
    Setting("algorithm.dual_clip", ("delta",), "null → 0 (off)", _dual_clip),
    Setting(
        "algorithm.sapo.temperature_positive",
        ("sapo_temperature_pos",),
        "of sapo",
        _temperature("sapo_temperature_pos"),
    ),
    Setting(
        "algorithm.sapo.temperature_negative",
        ("sapo_temperature_neg",),
        "of sapo",
        _temperature("sapo_temperature_neg"),
    ),
    Setting("algorithm.normalize_by_std", ("scale_rewards",), "group → true, none → false", _by_std),
    number("algorithm.entropy_coefficient", "entropy_coef"),
    number("algorithm.kl.loss_coefficient", "beta"),
    Setting("algorithm.kl.loss_estimator", ("beta",), "k3, TRL's only one", lambda values: Is("k3")),
    Setting(
        "algorithm.kl.reward_coefficient", ("beta",), "0: TRL's KL is in the loss", lambda values: Is(0.0)
    ),
    Setting(
        "algorithm.off_policy.level",
        (*_CORRECTED, "vllm_importance_sampling_mode"),
        "off without vLLM",
        _correction("level"),
    ),
    Setting(
        "algorithm.off_policy.bounds",
        ("vllm_importance_sampling_mode", *_CORRECTED),
        "truncate or mask",
        _correction("bounds"),
    ),
    Setting(
        "algorithm.off_policy.upper",
        ("vllm_importance_sampling_clip_max", *_CORRECTED),
        "the same",
        _correction("upper"),
    ),
    Setting(
        "algorithm.off_policy.lower",
        ("vllm_importance_sampling_clip_min", *_CORRECTED),
        "null → 0",
        _correction("lower"),
    ),
    Setting(
        "algorithm.off_policy.negative_sequence_bound",
        ("off_policy_mask_threshold",),
        "nats; null → 0 (off)",
        _negative_bound,
    ),
    Setting(
        "data.prompts_per_step",
        (
            "generation_batch_size",
            "steps_per_generation",
            "num_generations",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "num_processes",
        ),
        "prompts = completions of a round / num_generations",
        _prompts_per_step,
    ),
    copied("data.shuffle", "shuffle_dataset"),
    Setting(
        "actor.weights",
        ("model_name_or_path",),
        "a local directory in Hugging Face's form",
        model_directory("model_name_or_path"),
    ),
    Setting(
        "actor.minibatch_sequences",
        ("gradient_accumulation_steps", "per_device_train_batch_size", "num_processes"),
        "sequences over all devices = per device × accumulated × processes",
        _minibatch,
    ),
    copied("actor.update_epochs", "num_iterations"),
    copied("rollout.samples_per_prompt", "num_generations"),
    copied("rollout.max_response_tokens", "max_completion_length", "tokens"),
    number("rollout.temperature", "temperature"),
    number("rollout.validation_temperature", "temperature", "the same: TRL evaluates as it samples"),
    number("rollout.top_p", "top_p"),
    Setting("rollout.top_k", ("top_k",), "0 is off", lambda values: Is(max(0, values["top_k"] or 0))),
    Setting("rollout.min_p", ("min_p",), "null → 0 (off)", lambda values: Is(float(values["min_p"] or 0.0))),
    Setting("reward.function", ("reward_funcs",), "a compute_score of your own", _function),
    Setting("reward.kind", ("reward_model_name_or_path",), "model where one is named", _kind),
    Setting("reward.weights", ("reward_model_name_or_path",), "a local directory", _judge),
)

TRL_GRPO = Dialect(
    name="trl grpo",
    keys=GRPO_KEYS,
    settings=_SETTINGS,
    aliases={"vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max"},
)
