"""verl's algorithm keys and the loss keys of its actor: estimator, objective, KL, corrections. Knows no sizes."""

from __future__ import annotations

from collections.abc import Callable

from jaxflow.port.table import Idle, Is, Key, Outcome, Refused, Setting, Values, copied, number, renamed
from jaxflow.port.verl.corrections import LOSS_MODE
from jaxflow.port.verl.sizes import ACTOR, has_critic

_ESTIMATORS = {
    **{name: name for name in ("gae", "grpo", "grpo_passk", "gdpo", "rloo", "opo", "remax", "gpg")},
    "grpo_vectorized": "grpo",
    "rloo_vectorized": "rloo",
    "reinforce_plus_plus": "reinforce_plus_plus",
    "reinforce_plus_plus_baseline": "reinforce_plus_plus_baseline",
}
_OBJECTIVES = (
    "vanilla",
    "gspo",
    "cispo",
    "geo_mean",
    "sapo",
    "dppo_tv",
    "dppo_kl",
    "clip_cov",
    "kl_cov",
    "gpg",
)
_KL = {"kl": "k1", "k1": "k1", "abs": "abs", "mse": "k2", "k2": "k2", "low_var_kl": "k3", "k3": "k3"}
_LOSS = f"{ACTOR}.policy_loss"
_LOW, _HIGH = f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio_high"
_CLIP = f"{ACTOR}.clip_ratio"
# Objectives that verl averages over sequences whatever the config says.
_SEQUENCE_MEAN = ("gspo", "sapo", "geo_mean")

KEYS: tuple[Key, ...] = (
    Key("algorithm.adv_estimator", "gae"),
    Key("algorithm.gamma", 1.0),
    Key("algorithm.lam", 1.0),
    Key("algorithm.norm_adv_by_std_in_grpo", True),
    Key("algorithm.gdpo_reward_keys", None),
    Key("algorithm.gdpo_reward_weights", None),
    Key("algorithm.use_kl_in_reward", False),
    Key("algorithm.kl_penalty", "kl"),
    Key("algorithm.kl_ctrl.type", "fixed"),
    Key("algorithm.kl_ctrl.kl_coef", 0.001),
    Key("algorithm.kl_ctrl.target_kl", 0.1),
    Key("algorithm.kl_ctrl.horizon", 10000),
    Key(LOSS_MODE, "vanilla"),
    Key(_CLIP, 0.2, judge=lambda values: _clip_ratio(values)),
    Key(_LOW, 0.2),
    Key(_HIGH, 0.2),
    Key(f"{ACTOR}.clip_ratio_c", 3.0),
    Key(f"{ACTOR}.tau_pos", 1.0),
    Key(f"{ACTOR}.tau_neg", 1.05),
    Key(f"{_LOSS}.tau_pos", None, None, "verl reads actor.tau_pos"),
    Key(f"{_LOSS}.tau_neg", None, None, "verl reads actor.tau_neg"),
    Key(f"{_LOSS}.clip_cov_ratio", 0.0002),
    Key(f"{_LOSS}.clip_cov_lb", 1.0),
    Key(f"{_LOSS}.clip_cov_ub", 5.0),
    Key(f"{_LOSS}.kl_cov_ratio", 0.0002),
    Key(f"{_LOSS}.ppo_kl_coef", 0.1),
    Key(f"{_LOSS}.dro_beta", None, (None,), "jaxflow has no objective dro", "choose vanilla"),
    Key(f"{ACTOR}.loss_agg_mode", "token-mean"),
    Key(f"{ACTOR}.loss_scale_factor", None),
    Key(f"{ACTOR}.entropy_coeff", 0.0),
    Key(f"{ACTOR}.use_kl_loss", False),
    Key(f"{ACTOR}.kl_loss_coef", 0.001),
    Key(f"{ACTOR}.kl_loss_type", "low_var_kl"),
    Key(
        f"{ACTOR}.use_rollout_log_probs",
        False,
        (False, None),
        "see rollout_correction",
        "set bypass_mode there",
    ),
)


def dataflow_name(values: Values) -> str:
    """Return the dataflow of jaxflow that an estimator of verl's belongs to."""
    return {"gae": "ppo", "remax": "remax"}.get(values["algorithm.adv_estimator"], "grpo")


def _dataflow(values: Values) -> Outcome:
    return Is(dataflow_name(values), f"of the estimator {values['algorithm.adv_estimator']}")


def _width(values: Values, key: str) -> float:
    """Return a clip width: null is clip_ratio, which verl reads then alone."""
    return float(values[_CLIP] if values[key] is None else values[key])


def _clip(key: str, *modes: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        mode = values[LOSS_MODE]
        if mode not in modes:
            return Idle(f"not read by the objective {mode}")
        if mode == "gspo" and key not in values.given and _CLIP not in values.given:
            return Idle(
                "verl's default 0.2 is of token ratios, hundreds of times GSPO's own: jaxflow's default stands"
            )
        width = _width(values, key)
        if key == _LOW and mode == "cispo" and width > 1.0:
            return Is(1.0, f"a ratio is never below 1 − {width:g}: no lower bound")
        return Is(width)

    return outcome


def _divergence(mode: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        if values[LOSS_MODE] != mode:
            return Idle(f"read as a divergence by the objective {mode} alone")
        low, high = _width(values, _LOW), _width(values, _HIGH)
        if low != high:
            return Refused(f"jaxflow's {mode} has one bound, not {low} and {high}", "set both to one value")
        return Is(high, "verl's clip ratio is a divergence here")

    return outcome


def _of_mode(key: str, *modes: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        return (
            Is(float(values[key])) if values[LOSS_MODE] in modes else Idle(f"not read by {values[LOSS_MODE]}")
        )

    return outcome


def _clip_ratio(values: Values) -> Idle | None:
    if values[_LOW] is None or values[_HIGH] is None:
        return None
    return Idle("verl's losses read clip_ratio_low and clip_ratio_high, 0.2 unless given; set those")


def _objective(values: Values) -> Outcome:
    mode = values[LOSS_MODE]
    if mode == "bypass_mode":
        return Is("vanilla", "the clipped objective against the sampler's log-probs")
    if mode not in _OBJECTIVES:
        instead = f"choose one of {', '.join(_OBJECTIVES)}, or bring your own: docs/porting.md shows one"
        return Refused(f"jaxflow has no objective {mode!r}", instead)
    return Is(mode)


def _aggregation(values: Values) -> Outcome:
    mode = values[f"{ACTOR}.loss_agg_mode"]
    if values[LOSS_MODE] in _SEQUENCE_MEAN:
        return Is("seq-mean-token-mean", f"verl's {values[LOSS_MODE]} always aggregates so")
    scale, length = values[f"{ACTOR}.loss_scale_factor"], values["data.max_response_length"]
    if mode == "seq-mean-token-sum-norm" and scale not in (None, length):
        return Refused(
            f"jaxflow divides by rollout.max_response_tokens = {length}, not by {scale}",
            f"multiply the learning rate's effect yourself: the loss differs by the factor {length / scale:g}",
        )
    return Is(mode)


def _components(values: Values) -> Outcome:
    names, weights = values["algorithm.gdpo_reward_keys"], values["algorithm.gdpo_reward_weights"]
    if values["algorithm.adv_estimator"] != "gdpo" or names is None:
        return Idle("of the estimator gdpo")
    weights = [1.0] * len(names) if weights is None else weights
    return Is(tuple(f"{name}={float(weight):g}" for name, weight in zip(names, weights, strict=True)))


def _reward_kl(values: Values) -> Outcome:
    if not values["algorithm.use_kl_in_reward"]:
        return Is(0.0, "use_kl_in_reward is false: kl_coef has no effect")
    return Is(float(values["algorithm.kl_ctrl.kl_coef"]))


def _reward_estimator(values: Values) -> Outcome:
    if not values["algorithm.use_kl_in_reward"]:
        return Idle("use_kl_in_reward is false")
    return _kl_name(str(values["algorithm.kl_penalty"]).removesuffix("+"))


def _loss_kl(values: Values) -> Outcome:
    if not values[f"{ACTOR}.use_kl_loss"]:
        return Is(0.0, "use_kl_loss is false")
    return Is(float(values[f"{ACTOR}.kl_loss_coef"]))


def _loss_estimator(values: Values) -> Outcome:
    if not values[f"{ACTOR}.use_kl_loss"]:
        return Idle("use_kl_loss is false")
    name = str(values[f"{ACTOR}.kl_loss_type"])
    found = _kl_name(name.removesuffix("+"))
    return Is(f"{found.value}+") if name.endswith("+") and isinstance(found, Is) else found


def _kl_name(name: str) -> Outcome:
    if name in _KL:
        return Is(_KL[name])
    return Refused(
        f"no KL estimator {name!r}, which verl does not implement either", f"choose one of {', '.join(_KL)}"
    )


def _if_kl_in_reward(key: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        used = values["algorithm.use_kl_in_reward"] and values["algorithm.kl_ctrl.type"] == "adaptive"
        return Is(float(values[key])) if used else Idle("read by an adaptive KL in the reward alone")

    return outcome


def _controller(values: Values) -> Outcome:
    if not values["algorithm.use_kl_in_reward"]:
        return Idle("use_kl_in_reward is false")
    return Is(values["algorithm.kl_ctrl.type"])


def _of_gae(key: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        return (
            Is(float(values[key]))
            if values["algorithm.adv_estimator"] == "gae"
            else Idle("read by gae alone")
        )

    return outcome


def _value_clip(values: Values) -> Outcome:
    return Is(float(values["critic.cliprange_value"])) if has_critic(values) else Idle("there is no critic")


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "algorithm.name", ("algorithm.adv_estimator",), "ppo for gae, remax for remax, else grpo", _dataflow
    ),
    renamed(
        "algorithm.estimator",
        "algorithm.adv_estimator",
        _ESTIMATORS,
        "choose one of them, or bring a role of your own: docs/new_algorithm.md",
    ),
    number("algorithm.discount", "algorithm.gamma"),
    Setting("algorithm.gae_lambda", ("algorithm.lam",), "the same", _of_gae("algorithm.lam")),
    copied("algorithm.normalize_by_std", "algorithm.norm_adv_by_std_in_grpo"),
    Setting(
        "algorithm.gdpo.components",
        ("algorithm.gdpo_reward_keys", "algorithm.gdpo_reward_weights"),
        "key=weight; the weights are 1 unless given",
        _components,
    ),
    Setting("algorithm.objective", (LOSS_MODE,), f"the same: {', '.join(_OBJECTIVES)}", _objective),
    Setting(
        "algorithm.clip_ratio_low",
        (_LOW, _CLIP),
        "the same; null is clip_ratio",
        _clip(_LOW, "vanilla", "clip_cov", "bypass_mode"),
    ),
    Setting(
        "algorithm.clip_ratio_high",
        (_HIGH, _CLIP),
        "the same; null is clip_ratio",
        _clip(_HIGH, "vanilla", "clip_cov", "bypass_mode"),
    ),
    Setting(
        "algorithm.dual_clip",
        (f"{ACTOR}.clip_ratio_c",),
        "the same (vanilla)",
        _of_mode(f"{ACTOR}.clip_ratio_c", "vanilla", "bypass_mode"),
    ),
    *(
        Setting(f"algorithm.{group}.{name}", (key, _CLIP), f"of the objective {group}", _clip(key, group))
        for group, low, high in (
            ("gspo", "clip_ratio_low", "clip_ratio_high"),
            ("cispo", "clip_ratio_low", "clip_ratio_high"),
            ("geo_mean", "clip_log_ratio_low", "clip_log_ratio_high"),
        )
        for name, key in ((low, _LOW), (high, _HIGH))
    ),
    Setting(
        "algorithm.dppo.tv_bound",
        (_HIGH, _LOW, _CLIP),
        "of dppo_tv, where it is a divergence",
        _divergence("dppo_tv"),
    ),
    Setting(
        "algorithm.dppo.kl_bound",
        (_HIGH, _LOW, _CLIP),
        "of dppo_kl, where it is a divergence",
        _divergence("dppo_kl"),
    ),
    Setting(
        "algorithm.dppo.ratio_bound",
        (f"{ACTOR}.clip_ratio_c",),
        "of dppo_tv and dppo_kl",
        _of_mode(f"{ACTOR}.clip_ratio_c", "dppo_tv", "dppo_kl"),
    ),
    Setting(
        "algorithm.sapo.temperature_positive",
        (f"{ACTOR}.tau_pos",),
        "of sapo",
        _of_mode(f"{ACTOR}.tau_pos", "sapo"),
    ),
    Setting(
        "algorithm.sapo.temperature_negative",
        (f"{ACTOR}.tau_neg",),
        "of sapo",
        _of_mode(f"{ACTOR}.tau_neg", "sapo"),
    ),
    *(
        Setting(
            f"algorithm.{group}.{name}", (f"{_LOSS}.{key}",), f"of {group}", _of_mode(f"{_LOSS}.{key}", group)
        )
        for group, name, key in (
            ("clip_cov", "fraction", "clip_cov_ratio"),
            ("clip_cov", "covariance_low", "clip_cov_lb"),
            ("clip_cov", "covariance_high", "clip_cov_ub"),
            ("kl_cov", "fraction", "kl_cov_ratio"),
            ("kl_cov", "coefficient", "ppo_kl_coef"),
        )
    ),
    Setting("algorithm.value_clip", ("critic.cliprange_value",), "the same", _value_clip),
    number("algorithm.entropy_coefficient", f"{ACTOR}.entropy_coeff"),
    Setting(
        "algorithm.loss_aggregation",
        (f"{ACTOR}.loss_agg_mode", f"{ACTOR}.loss_scale_factor", LOSS_MODE),
        "the same; gspo, sapo and geo_mean are always seq-mean-token-mean",
        _aggregation,
    ),
    Setting(
        "algorithm.kl.reward_coefficient",
        ("algorithm.kl_ctrl.kl_coef", "algorithm.use_kl_in_reward"),
        "kl_coef where use_kl_in_reward, else 0",
        _reward_kl,
    ),
    Setting(
        "algorithm.kl.reward_estimator",
        ("algorithm.kl_penalty", "algorithm.use_kl_in_reward"),
        ", ".join(f"{old} → {new}" for old, new in _KL.items()),
        _reward_estimator,
    ),
    Setting(
        "algorithm.kl.controller",
        ("algorithm.kl_ctrl.type", "algorithm.use_kl_in_reward"),
        "the same",
        _controller,
    ),
    Setting(
        "algorithm.kl.target",
        ("algorithm.kl_ctrl.target_kl",),
        "nats per token",
        _if_kl_in_reward("algorithm.kl_ctrl.target_kl"),
    ),
    Setting(
        "algorithm.kl.horizon_sequences",
        ("algorithm.kl_ctrl.horizon",),
        "sequences",
        _if_kl_in_reward("algorithm.kl_ctrl.horizon"),
    ),
    Setting(
        "algorithm.kl.loss_coefficient",
        (f"{ACTOR}.kl_loss_coef", f"{ACTOR}.use_kl_loss"),
        "kl_loss_coef where use_kl_loss, else 0",
        _loss_kl,
    ),
    Setting(
        "algorithm.kl.loss_estimator",
        (f"{ACTOR}.kl_loss_type", f"{ACTOR}.use_kl_loss"),
        "as kl_penalty; a + behind it is kept",
        _loss_estimator,
    ),
)
