"""TRL's PPO trainer: its own arguments, and what follows from them. Its batch sizes count episodes."""

from __future__ import annotations

import math

from jaxflow.port.table import Dialect, Is, Key, Outcome, Refused, Setting, Values, copied, number
from jaxflow.port.trl.shared import (
    Sizes,
    longest,
    model_directory,
    optimizer_settings,
    sequences_per_update,
    shared_settings,
    shown_update,
)
from jaxflow.port.trl.trainer_keys import missing, shared_keys

_PROMPT_TOKENS = 512  # where TRL sets no limit: jaxflow's own default
_DERIVED = "TRL computes it itself"

_KEYS: tuple[Key, ...] = (
    Key("total_episodes", None),
    Key("num_ppo_epochs", 4),
    Key(
        "num_mini_batches",
        1,
        None,
        "TRL updates once per gradient_accumulation_steps micro-batches, which are the whole batch, whatever this says",
    ),
    Key("response_length", 53),
    Key("temperature", 0.7),
    Key("local_rollout_forward_batch_size", 64),
    Key("sft_model_path", "EleutherAI/pythia-160m"),
    Key("reward_model_path", "EleutherAI/pythia-160m"),
    Key("kl_coef", 0.05),
    Key("kl_estimator", "k1"),
    Key("cliprange", 0.2),
    Key("cliprange_value", 0.2),
    Key(
        "vf_coef",
        0.1,
        None,
        "the critic has an optimizer of its own, and AdamW's step does not scale with the loss",
    ),
    Key("gamma", 1.0),
    Key("lam", 0.95),
    Key("stop_token", None, (None, "eos"), "a response ends with the tokenizer's end token", "use eos"),
    Key("stop_token_id", None),
    *missing(
        "jaxflow does not have it",
        "give the penalty in a reward function",
        {"missing_eos_penalty": None, "whiten_rewards": False},
    ),
    *missing("of adapters", "train all weights", {"model_adapter_name": None, "ref_adapter_name": None}),
    *(
        Key(name, None, (None,), _DERIVED, "leave it out")
        for name in (
            "world_size",
            "num_total_batches",
            "micro_batch_size",
            "local_batch_size",
            "batch_size",
            "local_mini_batch_size",
            "mini_batch_size",
        )
    ),
)


def _prompts(values: Values) -> int:
    return sequences_per_update(values)


def _updates(values: Values) -> int:
    return values["num_ppo_epochs"]


def _longest(values: Values) -> int:
    prompt = values["max_prompt_length"]
    # A reward model reads one position more than the sequence has.
    return longest(_PROMPT_TOKENS if prompt is None else prompt, values["response_length"] + 1)


def _steps(values: Values) -> Outcome:
    episodes, batch = values["total_episodes"], sequences_per_update(values)
    if episodes is None:
        if values.rows is None:
            return Refused(
                f"{values['num_train_epochs']:g} epochs over an unknown number of rows",
                "give --rows=N or --total_episodes N; until then run.total_steps is 0, which is refused",
                placeholder=0,
            )
        episodes = int(values["num_train_epochs"] * values.rows)
    return Is(math.ceil(episodes / batch), f"⌈{episodes} episodes / {batch}⌉")


_SIZES = Sizes(_prompts, _updates, _longest, _steps, updates_per_count=_updates)


def _batch(values: Values) -> Outcome:
    return Is(sequences_per_update(values), shown_update(values))


def _scoring(values: Values) -> Outcome:
    sequences, tokens = values["local_rollout_forward_batch_size"], _longest(values)
    return Is(sequences * tokens, f"{sequences} sequences × {tokens} padded tokens")


def _tokens(values: Values) -> Outcome:
    sequences, tokens = values["per_device_train_batch_size"], _longest(values)
    return Is(sequences * tokens, f"{sequences} sequences × {tokens} padded tokens")


def _stop_tokens(values: Values) -> Outcome:
    return Is(() if values["stop_token_id"] is None else (values["stop_token_id"],))


_SETTINGS: tuple[Setting, ...] = (
    *shared_settings(_SIZES, "ppo", "kl_coef"),
    Setting(
        "run.total_steps",
        ("total_episodes", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
        "steps = ⌈episodes / batch⌉; null: epochs × rows",
        _steps,
    ),
    Setting("algorithm.name", ("lam",), "ppo", lambda values: Is("ppo")),
    Setting(
        "data.prompts_per_step",
        ("per_device_train_batch_size", "gradient_accumulation_steps", "num_processes"),
        "prompts = per device × accumulated × processes",
        _batch,
    ),
    *(
        Setting(
            f"{section}.minibatch_sequences",
            ("gradient_accumulation_steps", "per_device_train_batch_size", "num_processes"),
            "sequences over all devices = per device × accumulated × processes",
            _batch,
        )
        for section in ("actor", "critic")
    ),
    *(copied(f"{section}.update_epochs", "num_ppo_epochs") for section in ("actor", "critic")),
    Setting(
        "critic.microbatch_tokens_per_device", ("per_device_train_batch_size",), "as the actor's", _tokens
    ),
    *optimizer_settings("critic", _SIZES),
    Setting(
        "actor.weights",
        ("sft_model_path",),
        "a local directory in Hugging Face's form",
        model_directory("sft_model_path"),
    ),
    Setting(
        "critic.weights",
        ("reward_model_path",),
        "a local directory; TRL starts the value model there",
        model_directory("reward_model_path"),
    ),
    Setting(
        "reward.weights", ("reward_model_path",), "a local directory", model_directory("reward_model_path")
    ),
    Setting("reward.kind", ("reward_model_path",), "model", lambda values: Is("model")),
    copied("rollout.max_response_tokens", "response_length", "tokens"),
    number("rollout.temperature", "temperature"),
    Setting("rollout.stop_token_ids", ("stop_token_id",), "beside the tokenizer's end tokens", _stop_tokens),
    Setting(
        "rollout.score_microbatch_tokens_per_device",
        ("local_rollout_forward_batch_size",),
        "padded tokens = sequences × (prompt + response)",
        _scoring,
    ),
    number("algorithm.discount", "gamma"),
    number("algorithm.gae_lambda", "lam"),
    number("algorithm.clip_ratio_low", "cliprange"),
    number("algorithm.clip_ratio_high", "cliprange"),
    Setting("algorithm.dual_clip", ("cliprange",), "0: TRL's PPO has none", lambda values: Is(0.0)),
    number("algorithm.value_clip", "cliprange_value"),
    number("algorithm.kl.reward_coefficient", "kl_coef"),
    copied("algorithm.kl.reward_estimator", "kl_estimator"),
)

TRL_PPO = Dialect(name="trl ppo", keys=(*_KEYS, *shared_keys(3e-6)), settings=_SETTINGS)
