"""verl's rollout keys: how responses are sampled, validated and scored. Knows no rule of learning."""

from __future__ import annotations

from jaxflow.config import RolloutConfig
from jaxflow.port.table import Idle, Is, Key, Outcome, Refused, Setting, Values, copied, number
from jaxflow.port.verl.learning import DTYPES, microbatch_tokens
from jaxflow.port.verl.sizes import REFERENCE, ROLLOUT


def _scoring_keys(prefix: str) -> tuple[Key, ...]:
    return (
        Key(f"{prefix}.log_prob_micro_batch_size_per_gpu", None),
        Key(f"{prefix}.log_prob_micro_batch_size", None),
        Key(f"{prefix}.log_prob_use_dynamic_bsz", "${actor_rollout_ref.actor.use_dynamic_bsz}"),
        Key(
            f"{prefix}.log_prob_max_token_len_per_gpu", "${actor_rollout_ref.actor.ppo_max_token_len_per_gpu}"
        ),
    )


KEYS: tuple[Key, ...] = (
    *_scoring_keys(ROLLOUT),
    *_scoring_keys(REFERENCE),
    Key(f"{ROLLOUT}.n", 1),
    Key(f"{ROLLOUT}.name", None, None, "jaxflow generates with its own model code"),
    Key(f"{ROLLOUT}.temperature", 1.0),
    Key(f"{ROLLOUT}.top_k", -1),
    Key(f"{ROLLOUT}.top_p", 1.0),
    Key(f"{ROLLOUT}.min_p", 0.0),
    Key(f"{ROLLOUT}.min_tokens", 0),
    Key(f"{ROLLOUT}.stop", None),
    Key(f"{ROLLOUT}.stop_token_ids", None),
    Key(f"{ROLLOUT}.do_sample", True),
    Key(f"{ROLLOUT}.ignore_eos", False),
    Key(f"{ROLLOUT}.dtype", "bfloat16"),
    Key(f"{ROLLOUT}.max_num_seqs", 256),
    Key(f"{ROLLOUT}.val_kwargs.do_sample", False),
    Key(f"{ROLLOUT}.val_kwargs.temperature", 0.0),
    Key(f"{ROLLOUT}.val_kwargs.n", 1),
    Key(f"{ROLLOUT}.val_kwargs.top_k", -1, judge=lambda values: _validation_cut(values, "top_k")),
    Key(f"{ROLLOUT}.val_kwargs.top_p", 1.0, judge=lambda values: _validation_cut(values, "top_p")),
    Key(
        "actor_rollout_ref.rollout.val_kwargs.ignore_eos",
        False,
        (False,),
        "as rollout.ignore_eos",
        "leave it off",
    ),
)


def _validation_cut(values: Values, name: str) -> Idle | Refused:
    """Say what becomes of a truncation of validation alone: jaxflow samples and validates with the same."""
    if not values[f"{ROLLOUT}.val_kwargs.do_sample"]:
        return Idle("validation is greedy")
    validation, rollout = values[f"{ROLLOUT}.val_kwargs.{name}"], values[f"{ROLLOUT}.{name}"]
    if validation == rollout or {validation, rollout} <= {-1, 0}:
        return Idle(f"validation has the rollout's {name}")
    return Refused(
        f"validation has the rollout's {name}, {rollout}",
        "evaluate the exported weights with a tool of its own",
    )


_SCORING = (
    "log_prob_use_dynamic_bsz",
    "log_prob_max_token_len_per_gpu",
    "log_prob_micro_batch_size_per_gpu",
    "log_prob_micro_batch_size",
)


def _scoring_tokens(values: Values) -> Outcome:
    sized = [
        prefix
        for prefix in (ROLLOUT, REFERENCE)
        if any(values[f"{prefix}.{name}"] not in (None, False) for name in _SCORING[:1] + _SCORING[2:])
    ]
    bounds = [microbatch_tokens(values, prefix, _SCORING) for prefix in sized or [ROLLOUT]]
    return min(bounds, key=lambda bound: bound.value)


def _rollout_dtype(values: Values) -> Outcome:
    name = values[f"{ROLLOUT}.dtype"]
    return Is(DTYPES[name]) if name in DTYPES else Refused(f"no {name}", "generate in bfloat16 or float32")


def _temperature(values: Values) -> Outcome:
    if not values[f"{ROLLOUT}.do_sample"]:
        return Is(0.0, "do_sample is false: greedy")
    return Is(float(values[f"{ROLLOUT}.temperature"]))


def _validation_temperature(values: Values) -> Is:
    if not values[f"{ROLLOUT}.val_kwargs.do_sample"]:
        return Is(0.0, "val_kwargs.do_sample is false: greedy")
    return Is(float(values[f"{ROLLOUT}.val_kwargs.temperature"]))


def _validation_samples(values: Values) -> Outcome:
    if _validation_temperature(values).value == 0.0:
        return Is(1, "greedy answers to a prompt are all the same")
    return Is(values[f"{ROLLOUT}.val_kwargs.n"])


def _top_k(values: Values) -> Outcome:
    top_k = values[f"{ROLLOUT}.top_k"]
    return Is(0, "−1 is off") if top_k in (-1, 0, None) else Is(top_k)


def _stop_strings(values: Values) -> Outcome:
    stop = values[f"{ROLLOUT}.stop"]
    return Is((stop,) if isinstance(stop, str) else tuple(stop or ()))


def _sequences(values: Values) -> Outcome:
    given = f"{ROLLOUT}.max_num_seqs" in values.given
    return Is(values[f"{ROLLOUT}.max_num_seqs"] if given else RolloutConfig.sequences_per_device)


SETTINGS: tuple[Setting, ...] = (
    copied("rollout.samples_per_prompt", f"{ROLLOUT}.n"),
    Setting(
        "rollout.temperature",
        (f"{ROLLOUT}.temperature", f"{ROLLOUT}.do_sample"),
        "0 where do_sample is false",
        _temperature,
    ),
    Setting("rollout.top_k", (f"{ROLLOUT}.top_k",), "−1 (off) → 0", _top_k),
    number("rollout.top_p", f"{ROLLOUT}.top_p"),
    number("rollout.min_p", f"{ROLLOUT}.min_p"),
    copied("rollout.min_response_tokens", f"{ROLLOUT}.min_tokens"),
    Setting(
        "rollout.stop_strings",
        (f"{ROLLOUT}.stop",),
        "one text or a list; the string stays in the response",
        _stop_strings,
    ),
    Setting(
        "rollout.stop_token_ids",
        (f"{ROLLOUT}.stop_token_ids",),
        "beside the tokenizer's end tokens",
        lambda values: Is(tuple(values[f"{ROLLOUT}.stop_token_ids"] or ())),
    ),
    copied("rollout.ignore_end_token", f"{ROLLOUT}.ignore_eos"),
    Setting("rollout.dtype", (f"{ROLLOUT}.dtype",), "bfloat16 or float32", _rollout_dtype),
    Setting(
        "rollout.sequences_per_device", (f"{ROLLOUT}.max_num_seqs",), "rows generated at once", _sequences
    ),
    Setting(
        "rollout.score_microbatch_tokens_per_device",
        tuple(
            f"{prefix}.{name}"
            for prefix in (ROLLOUT, REFERENCE)
            for name in (_SCORING[2], _SCORING[3], _SCORING[0], _SCORING[1])
        ),
        "padded tokens = sequences × (max_prompt + max_response), or the dynamic budget; the smaller of the two",
        _scoring_tokens,
    ),
    Setting(
        "rollout.validation_temperature",
        (f"{ROLLOUT}.val_kwargs.temperature", f"{ROLLOUT}.val_kwargs.do_sample"),
        "0 where do_sample is false",
        _validation_temperature,
    ),
    Setting(
        "rollout.validation_samples",
        (f"{ROLLOUT}.val_kwargs.n", f"{ROLLOUT}.val_kwargs.do_sample", f"{ROLLOUT}.val_kwargs.temperature"),
        "the same; 1 where validation is greedy",
        _validation_samples,
    ),
)
