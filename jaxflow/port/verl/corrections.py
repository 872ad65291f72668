"""verl's keys of what is done about data: off-policy corrections, dynamic sampling, reweighting. Knows no loss."""

from __future__ import annotations

from collections.abc import Callable

from jaxflow.port.table import Idle, Is, Key, Outcome, Refused, Setting, Values
from jaxflow.port.verl.sizes import ACTOR

LOSS_MODE = f"{ACTOR}.policy_loss.loss_mode"

_CORRECTION = "algorithm.rollout_correction"
_REJECTIONS = {"token_k1": "token", "seq_sum_k1": "sequence", "seq_mean_k1": "geometric"}
_METRICS = {
    "acc": "accuracy",
    "score": "score",
    "seq_reward": "score",
    "seq_final_reward": "score",
    None: "score",
}
_REFILLS = 10  # where verl sets no bound

KEYS: tuple[Key, ...] = (
    Key("algorithm.use_pf_ppo", False),
    Key("algorithm.pf_ppo.reweight_method", "pow"),
    Key("algorithm.pf_ppo.weight_pow", 2.0),
    Key("algorithm.filter_groups.enable", False),
    Key("algorithm.filter_groups.metric", None),
    Key("algorithm.filter_groups.max_num_gen_batches", 0),
    Key(
        "algorithm.filter_groups.max_inflight_gen_batches",
        1,
        None,
        "jaxflow refills one batch after the other",
    ),
    Key("data.gen_batch_size", None, None, "jaxflow refills with as many prompts as groups are missing"),
    Key(f"{_CORRECTION}.rollout_is", None),
    Key(f"{_CORRECTION}.rollout_is_threshold", 2.0),
    Key(f"{_CORRECTION}.rollout_rs", None),
    Key(f"{_CORRECTION}.rollout_rs_threshold", None),
    Key(f"{_CORRECTION}.bypass_mode", False),
    Key(f"{_CORRECTION}.loss_type", "ppo_clip"),
    Key(
        f"{_CORRECTION}.rollout_is_batch_normalize",
        False,
        (False,),
        "jaxflow does not normalise the weights",
        "leave it off; the bound keeps them small",
    ),
)


def _refills(values: Values) -> Outcome:
    if not values["algorithm.filter_groups.enable"]:
        return Is(0, "filter_groups.enable is false")
    batches = values["algorithm.filter_groups.max_num_gen_batches"]
    if batches <= 0:
        return Is(_REFILLS, "verl sets no bound; jaxflow needs one")
    return Is(batches - 1, f"{batches} rounds of generation = the first + {batches - 1} refills")


def _filter_metric(values: Values) -> Outcome:
    if not values["algorithm.filter_groups.enable"]:
        return Idle("filter_groups.enable is false")
    metric = values["algorithm.filter_groups.metric"]
    if metric not in _METRICS:
        return Refused(f"jaxflow filters by score or accuracy, not by {metric!r}", "choose acc or score")
    return Is(_METRICS[metric])


def _reweighting(values: Values) -> Outcome:
    return Is(values["algorithm.pf_ppo.reweight_method"] if values["algorithm.use_pf_ppo"] else "off")


def _power(values: Values) -> Outcome:
    return Is(float(values["algorithm.pf_ppo.weight_pow"])) if values["algorithm.use_pf_ppo"] else Idle("off")


def _bounds(threshold: object) -> tuple[float | None, float]:
    """Read "low_high", or one number: the upper bound."""
    low, underscore, high = str(threshold).partition("_")
    return (float(low), float(high)) if underscore else (None, float(low))


def _is_bypass(values: Values) -> bool:
    return bool(values[f"{_CORRECTION}.bypass_mode"]) or values[LOSS_MODE] == "bypass_mode"


def _level(values: Values) -> Outcome:
    level = values[f"{_CORRECTION}.rollout_is"]
    if level is None:
        return Is("off")
    if _is_bypass(values):
        return Idle("no weights beside the ratio, which is taken against the sampler itself (bypass_mode)")
    if level not in ("token", "sequence"):
        return Refused(f"jaxflow has no level {level!r}", "choose token or sequence")
    return Is(level)


def _weight_bound(which: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        if values[f"{_CORRECTION}.rollout_is"] is None or _is_bypass(values):
            return Idle("rollout_is is null, or bypass_mode has no weights")
        low, high = _bounds(values[f"{_CORRECTION}.rollout_is_threshold"])
        if which == "bounds":
            return Is("truncate", "one number") if low is None else Is("mask", "low_high: outside is dropped")
        if which == "lower":
            return Idle("one number: no lower bound") if low is None else Is(low)
        return Is(high)

    return outcome


def _rejection(values: Values) -> Outcome:
    modes = values[f"{_CORRECTION}.rollout_rs"]
    if modes is None:
        return Is("off")
    if _is_bypass(values):
        return Refused(
            "with bypass_mode jaxflow rejects nothing", "leave one of them off; the clip bounds the ratio"
        )
    if modes not in _REJECTIONS:
        return Refused(
            f"jaxflow rejects by the ratio itself ({', '.join(_REJECTIONS)}), not by {modes!r}",
            "choose the k1 form of the same level with the bounds low_high",
        )
    return Is(_REJECTIONS[modes])


def _rejection_bound(which: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        threshold = values[f"{_CORRECTION}.rollout_rs_threshold"]
        if values[f"{_CORRECTION}.rollout_rs"] not in _REJECTIONS or _is_bypass(values):
            return Idle("no rejection")
        if threshold is None:
            return Refused("verl asks for rollout_rs_threshold where rollout_rs is set", "give low_high")
        low, high = _bounds(threshold)
        if which == "upper":
            return Is(high)
        return Is(1.0 / high, f"1 / {high}, as verl does with one number") if low is None else Is(low)

    return outcome


def _bypass(values: Values) -> Outcome:
    if _is_bypass(values) and values[f"{_CORRECTION}.loss_type"] != "ppo_clip":
        return Refused(
            "jaxflow's bypass is of the clipped objectives, not of the weighted policy gradient",
            "by tokens it is: objective cispo, cispo.clip_ratio_low 1, clip_ratio_high threshold − 1, bypass true",
        )
    return Is(_is_bypass(values))


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "algorithm.off_policy.level",
        (f"{_CORRECTION}.rollout_is", f"{_CORRECTION}.bypass_mode"),
        "null → off",
        _level,
    ),
    *(
        Setting(
            f"algorithm.off_policy.{which}",
            (
                f"{_CORRECTION}.rollout_is_threshold",
                f"{_CORRECTION}.rollout_is",
                f"{_CORRECTION}.bypass_mode",
            ),
            how,
            _weight_bound(which),
        )
        for which, how in (
            ("bounds", "a number truncates, low_high masks"),
            ("lower", "of low_high"),
            ("upper", "the other"),
        )
    ),
    Setting(
        "algorithm.off_policy.rejection",
        (f"{_CORRECTION}.rollout_rs",),
        ", ".join(f"{old} → {new}" for old, new in _REJECTIONS.items()),
        _rejection,
    ),
    *(
        Setting(
            f"algorithm.off_policy.rejection_{which}",
            (f"{_CORRECTION}.rollout_rs_threshold", f"{_CORRECTION}.rollout_rs"),
            how,
            _rejection_bound(which),
        )
        for which, how in (("lower", "of low_high; one number: 1 / it"), ("upper", "the other"))
    ),
    Setting(
        "algorithm.off_policy.bypass",
        (f"{_CORRECTION}.bypass_mode", f"{_CORRECTION}.loss_type", LOSS_MODE),
        "with loss_type ppo_clip",
        _bypass,
    ),
    Setting(
        "algorithm.dynamic_sampling.max_refills",
        ("algorithm.filter_groups.max_num_gen_batches", "algorithm.filter_groups.enable"),
        f"rounds − 1; 0 (no bound) → {_REFILLS}; 0 where it is not enabled",
        _refills,
    ),
    Setting(
        "algorithm.dynamic_sampling.metric",
        ("algorithm.filter_groups.metric", "algorithm.filter_groups.enable"),
        "acc → accuracy, the others → score",
        _filter_metric,
    ),
    Setting(
        "algorithm.reweighting.method",
        ("algorithm.pf_ppo.reweight_method", "algorithm.use_pf_ppo"),
        "off where use_pf_ppo is false",
        _reweighting,
    ),
    Setting(
        "algorithm.reweighting.power",
        ("algorithm.pf_ppo.weight_pow", "algorithm.use_pf_ppo"),
        "the same",
        _power,
    ),
)
