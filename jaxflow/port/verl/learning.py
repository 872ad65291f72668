"""verl's actor and critic keys: sizes of batches, optimizers. Knows no rule of learning and no sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxflow.port.table import Idle, Is, Key, Outcome, Refused, Setting, Values, copied, number
from jaxflow.port.verl.sizes import (
    ACTOR,
    MODEL,
    REFERENCE,
    ROLLOUT,
    devices,
    has_critic,
    is_megatron,
    longest_tokens,
    total_steps,
    updates_per_step,
)

DTYPES = {
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("float32", "fp32", "float"), "float32"),
}
_ADAM = ("AdamW", "adamw", "_AdamW", "adam", "Adam", "FusedAdam")
_NO_CRITIC = "there is no critic: algorithm.adv_estimator is not gae"
_WIDE = "an AdamW with float32 moments is jaxflow's only optimizer"


def _optimizer_keys(prefix: str, learning_rate: float) -> tuple[Key, ...]:
    return (
        Key(f"{prefix}.optim.lr", learning_rate),
        Key(f"{prefix}.optim.optimizer", "AdamW", _ADAM, _WIDE, "retune the learning rate for AdamW"),
        Key(f"{prefix}.optim.weight_decay", 0.01),
        Key(f"{prefix}.optim.betas", [0.9, 0.999]),
        Key(f"{prefix}.optim.clip_grad", 1.0),
        Key(f"{prefix}.grad_clip", 1.0),
        Key(f"{prefix}.optim.lr_scheduler_type", "constant"),
        Key(f"{prefix}.optim.warmup_style", None),
        Key(f"{prefix}.optim.lr_decay_style", "constant"),
        Key(f"{prefix}.optim.min_lr_ratio", 0.0),
        Key(f"{prefix}.optim.min_lr_factor", None, (None,), "of another engine", "set min_lr_ratio"),
        Key(f"{prefix}.optim.min_lr", 0.0),
        Key(f"{prefix}.optim.lr_warmup_steps", -1),
        Key(f"{prefix}.optim.lr_warmup_steps_ratio", 0.0),
    )


def _batch_keys(prefix: str, defaults: tuple[object, ...], max_tokens: int) -> tuple[Key, ...]:
    mini, epochs, dynamic = defaults
    return (
        Key(f"{prefix}.ppo_mini_batch_size", mini),
        Key(f"{prefix}.ppo_epochs", epochs),
        Key(f"{prefix}.ppo_micro_batch_size_per_gpu", None),
        Key(f"{prefix}.ppo_micro_batch_size", None),
        Key(f"{prefix}.use_dynamic_bsz", dynamic),
        Key(f"{prefix}.ppo_max_token_len_per_gpu", max_tokens),
    )


_SCORED = "rollout.score_microbatch_tokens_per_device bounds the critic's scoring as well"

KEYS: tuple[Key, ...] = (
    *_optimizer_keys(ACTOR, 1e-6),
    *_optimizer_keys("critic", 1e-5),
    *_batch_keys(ACTOR, (256, 1, False), 16384),
    *_batch_keys(
        "critic",
        (f"${{{ACTOR}.ppo_mini_batch_size}}", f"${{{ACTOR}.ppo_epochs}}", f"${{{ACTOR}.use_dynamic_bsz}}"),
        32768,
    ),
    *(
        Key(f"critic.forward_{name}", None, None, _SCORED)
        for name in ("micro_batch_size", "micro_batch_size_per_gpu", "max_token_len_per_gpu")
    ),
    Key("critic.enable", None, judge=lambda values: _critic_asked(values)),
    Key("critic.cliprange_value", 0.5),
    Key(
        "critic.loss_agg_mode",
        f"${{{ACTOR}.loss_agg_mode}}",
        None,
        "the critic's loss is aggregated as the actor's",
    ),
    Key("critic.loss_scale_factor", None, None, "the critic's loss is aggregated as the actor's"),
    Key("trainer.critic_warmup", 0),
    *(
        Key(
            f"{prefix}.model_dtype",
            "fp32",
            ("fp32", "float32", None),
            "masters are float32",
            "leave it at fp32",
        )
        for prefix in (f"{ACTOR}.fsdp_config", f"{REFERENCE}.fsdp_config", "critic.fsdp")
    ),
    Key(f"{ACTOR}.fsdp_config.dtype", "bfloat16"),
    Key(f"{ACTOR}.megatron.dtype", "bfloat16"),
    *(
        Key(f"{prefix}.dtype", "bfloat16", None, "computed as the actor is")
        for prefix in (f"{REFERENCE}.fsdp_config", "critic.fsdp", f"{REFERENCE}.megatron", "critic.megatron")
    ),
    Key(f"{MODEL}.enable_gradient_checkpointing", True),
    Key(
        "critic.model.enable_gradient_checkpointing",
        True,
        None,
        "the critic has the actor's shape and its remat",
    ),
)


def _critic_asked(values: Values) -> Idle | Refused:
    asked = values["critic.enable"]
    if asked is None or bool(asked) == has_critic(values):
        return Idle("there is a critic where algorithm.adv_estimator is gae")
    return Refused("jaxflow trains a critic for gae, and for no other estimator", "leave it out")


def _schedule(prefix: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        named = values[f"{prefix}.optim.warmup_style"] or values[f"{prefix}.optim.lr_scheduler_type"]
        style = values[f"{prefix}.optim.lr_decay_style"] if is_megatron(values) else named
        if style not in ("constant", "cosine", "linear"):
            return Refused(f"jaxflow has no schedule {style!r}", "choose constant, cosine or linear")
        return Is(style)

    return outcome


def _final_fraction(prefix: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        if not is_megatron(values):
            return Is(float(values[f"{prefix}.optim.min_lr_ratio"] or 0.0))
        least, peak = float(values[f"{prefix}.optim.min_lr"]), float(values[f"{prefix}.optim.lr"])
        return Is(least / peak if peak > 0.0 else 0.0, f"min_lr {least:g} / lr {peak:g}")

    return outcome


def _warmup(prefix: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        steps, ratio = (
            values[f"{prefix}.optim.lr_warmup_steps"],
            values[f"{prefix}.optim.lr_warmup_steps_ratio"],
        )
        updates = updates_per_step(values, prefix)
        if steps is not None and steps > 0:
            return Is(steps * updates, f"{steps} steps × {updates} updates per step")
        if not ratio:
            return Is(0)
        total = total_steps(values)
        if total is None:
            return Refused(
                f"{ratio} of an unknown number of steps", "give --rows=N or trainer.total_training_steps=N"
            )
        return Is(int(ratio * total) * updates, f"{ratio} × {total} steps × {updates} updates per step")

    return outcome


def _clip_norm(prefix: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        today, older = f"{prefix}.optim.clip_grad", f"{prefix}.grad_clip"
        return Is(
            float(values[older] if older in values.given and today not in values.given else values[today])
        )

    return outcome


def _minibatch(prefix: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        prompts, samples = values[f"{prefix}.ppo_mini_batch_size"], values[f"{ROLLOUT}.n"]
        return Is(prompts * samples, f"{prompts} prompts × {samples} samples")

    return outcome


def microbatch_tokens(values: Values, prefix: str, names: tuple[str, str, str, str]) -> Is:
    """Return the padded tokens of a micro-batch; `names`: dynamic?, its budget, sequences per device, over all."""
    dynamic, tokens, per_device, over_all = (f"{prefix}.{name}" for name in names)
    longest = longest_tokens(values)
    if values[dynamic]:
        least = max(values[tokens], longest)
        raised = f", raised to one sequence of {longest}" if least > values[tokens] else ""
        return Is(least, f"tokens per device, as given{raised}")
    if values[per_device] is not None:
        return Is(values[per_device] * longest, f"{values[per_device]} sequences × {longest} padded tokens")
    if values[over_all] is not None:
        sequences = max(1, values[over_all] // devices(values))
        return Is(
            sequences * longest,
            f"{values[over_all]} sequences / {devices(values)} devices × {longest} tokens",
        )
    return Is(
        max(values[tokens], longest), "verl asks for a micro-batch size and none is given; its token budget"
    )


_TRAINING = (
    "use_dynamic_bsz",
    "ppo_max_token_len_per_gpu",
    "ppo_micro_batch_size_per_gpu",
    "ppo_micro_batch_size",
)


def _dtype(values: Values) -> Outcome:
    name = values[f"{ACTOR}.megatron.dtype"] if is_megatron(values) else values[f"{ACTOR}.fsdp_config.dtype"]
    return Is(DTYPES[name]) if name in DTYPES else Refused(f"no {name}", "compute in bfloat16 or float32")


def _optimizer_settings(section: str, prefix: str) -> tuple[Setting, ...]:
    target, optim = f"{section}.optimizer", f"{prefix}.optim"
    sizes = (f"{prefix}.ppo_mini_batch_size", f"{prefix}.ppo_epochs", "data.train_batch_size")
    steps = ("trainer.total_training_steps", "trainer.total_epochs")
    return (
        number(f"{target}.learning_rate", f"{optim}.lr"),
        Setting(
            f"{target}.schedule",
            (f"{optim}.lr_scheduler_type", f"{optim}.warmup_style", f"{optim}.lr_decay_style"),
            "constant, cosine (FSDP); lr_decay_style with Megatron",
            _schedule(prefix),
        ),
        Setting(
            f"{target}.final_fraction",
            (f"{optim}.min_lr_ratio", f"{optim}.min_lr", f"{optim}.lr"),
            "of the peak; with Megatron min_lr / lr",
            _final_fraction(prefix),
        ),
        Setting(
            f"{target}.warmup_updates",
            (f"{optim}.lr_warmup_steps", f"{optim}.lr_warmup_steps_ratio", *sizes, *steps),
            "updates = steps × mini-batches per step × epochs; verl counts steps",
            _warmup(prefix),
        ),
        Setting(
            f"{target}.beta1", (f"{optim}.betas",), "the first", lambda v: Is(float(v[f"{optim}.betas"][0]))
        ),
        Setting(
            f"{target}.beta2", (f"{optim}.betas",), "the second", lambda v: Is(float(v[f"{optim}.betas"][1]))
        ),
        number(f"{target}.weight_decay", f"{optim}.weight_decay"),
        Setting(
            f"{target}.clip_norm",
            (f"{optim}.clip_grad", f"{prefix}.grad_clip"),
            "the same",
            _clip_norm(prefix),
        ),
    )


def _batch_settings(section: str, prefix: str) -> tuple[Setting, ...]:
    dynamic, tokens, per_device, over_all = (f"{prefix}.{name}" for name in _TRAINING)
    return (
        copied(f"{section}.update_epochs", f"{prefix}.ppo_epochs"),
        Setting(
            f"{section}.minibatch_sequences",
            (f"{prefix}.ppo_mini_batch_size", f"{ROLLOUT}.n"),
            "sequences over all devices = prompts × rollout.n",
            _minibatch(prefix),
        ),
        Setting(
            f"{section}.microbatch_tokens_per_device",
            (per_device, over_all, dynamic, tokens),
            "padded tokens = sequences × (max_prompt + max_response), or the dynamic budget",
            lambda values: microbatch_tokens(values, prefix, _TRAINING),
        ),
    )


def _of_critic(setting: Setting) -> Setting:
    """Return a setting that has nothing to set where there is no critic."""

    def outcome(values: Values) -> Outcome:
        return setting.outcome(values) if has_critic(values) else Idle(_NO_CRITIC)

    return dataclasses.replace(setting, outcome=outcome)


def _warmup_steps(values: Values) -> Outcome:
    return Is(max(0, int(values["trainer.critic_warmup"]) - 1), "verl's policy learns in that step already")


SETTINGS: tuple[Setting, ...] = (
    *_optimizer_settings("actor", ACTOR),
    *_batch_settings("actor", ACTOR),
    Setting(
        "actor.model.compute_dtype",
        (f"{ACTOR}.fsdp_config.dtype", f"{ACTOR}.megatron.dtype"),
        "bfloat16 or float32; master weights are float32 in both",
        _dtype,
    ),
    copied("actor.model.remat", f"{MODEL}.enable_gradient_checkpointing"),
    *map(_of_critic, (*_optimizer_settings("critic", "critic"), *_batch_settings("critic", "critic"))),
    _of_critic(
        Setting(
            "critic.warmup_steps",
            ("trainer.critic_warmup",),
            "one less: steps that the critic learns in alone",
            _warmup_steps,
        )
    ),
)
