"""The rule of learning as the config asks for it: from its keys to the losses and estimators of `algorithms`.

Knows keys and formulas; knows no model and no process. Every choice of the config is made here, once.
"""

from __future__ import annotations

import functools

from jaxflow.algorithms.experience import CovarianceRule, ExperienceEstimator, OffPolicyRule
from jaxflow.algorithms.lagrange import MultiplierRule
from jaxflow.algorithms.losses import PolicyLoss
from jaxflow.algorithms.objectives import Objective, by_token, clipped_objective
from jaxflow.algorithms.sequence_objectives import (
    geometric_mean_objective,
    gspo_objective,
    gspo_token_objective,
)
from jaxflow.algorithms.token_objectives import (
    cispo_objective,
    dppo_objective,
    policy_gradient_objective,
    ratio_objective,
    sapo_objective,
)
from jaxflow.config import AlgorithmConfig, Config
from jaxflow.dataflow import load_dataflow
from jaxflow.dataflow.objective import load_objective

# Beside the streams of the roles' weights (roles.py).
_COVARIANCE_DRAW = 7
# Objectives to what the entropy mechanism does under them.
_EFFECTS = {"clip_cov": "drop", "kl_cov": "penalise"}


def policy_loss(config: Config) -> PolicyLoss:
    """Return the loss of the policy."""
    rule = config.algorithm
    return PolicyLoss(
        objective=_objective(rule),
        entropy_coefficient=rule.entropy_coefficient,
        aggregation=rule.loss_aggregation,
        kl_coefficient=rule.kl.loss_coefficient,
        kl_estimator=rule.kl.loss_estimator,
        length_constant=float(config.rollout.max_response_tokens),
        penalty_coefficient=rule.kl_cov.coefficient,
        negative_sequence_bound=rule.off_policy.negative_sequence_bound,
    )


def experience_estimator(config: Config) -> ExperienceEstimator:
    """Return the way from a step's rollout to what its updates read."""
    rule, off_policy = config.algorithm, config.algorithm.off_policy
    cov = rule.clip_cov
    return ExperienceEstimator(
        estimator=rule.estimator or load_dataflow(rule.name).estimators[0],
        discount=rule.discount,
        gae_lambda=rule.gae_lambda,
        score_bound=rule.score_bound,
        whiten_advantages=rule.whiten_advantages,
        normalize_by_std=rule.normalize_by_std,
        kl_reward_estimator=rule.kl.reward_estimator,
        component_weights=tuple(rule.gdpo.weights.values()),
        off_policy=OffPolicyRule(
            # With the sampler as π_old the objective's ratio holds the correction; a weight would count it twice.
            level="off" if off_policy.bypass else off_policy.level,
            bounds=off_policy.bounds,
            lower=off_policy.lower,
            upper=off_policy.upper,
            rejection="off" if off_policy.bypass else off_policy.rejection,
            rejection_lower=off_policy.rejection_lower,
            rejection_upper=off_policy.rejection_upper,
        ),
        covariance=CovarianceRule(
            effect=_EFFECTS.get(rule.objective, "off"),
            fraction=cov.fraction if rule.objective == "clip_cov" else rule.kl_cov.fraction,
            low=cov.covariance_low,
            high=cov.covariance_high,
            seed=config.run.seed + _COVARIANCE_DRAW,
        ),
        reweighting=rule.reweighting.method,
        reweighting_power=rule.reweighting.power,
    )


def multiplier_rule(config: Config) -> MultiplierRule:
    """Return how the multiplier on the costs moves."""
    lagrange = config.algorithm.lagrange
    return MultiplierRule(
        learning_rate=lagrange.learning_rate,
        maximum=lagrange.maximum,
        window_episodes=lagrange.window_episodes,
        threshold=lagrange.threshold,
    )


def _objective(rule: AlgorithmConfig) -> Objective:
    if ":" in rule.objective:
        return load_objective(rule.objective)
    gspo, geo_mean, dppo = rule.gspo, rule.geo_mean, rule.dppo
    clip = functools.partial(
        by_token,
        clipped_objective,
        clip_ratio_low=rule.clip_ratio_low,
        clip_ratio_high=rule.clip_ratio_high,
    )
    widths = {"clip_ratio_low": gspo.clip_ratio_low, "clip_ratio_high": gspo.clip_ratio_high}
    divergence = functools.partial(by_token, dppo_objective, ratio_bound=dppo.ratio_bound)
    match rule.objective:
        case "gspo":
            return functools.partial(gspo_objective, **widths)
        case "gspo_token":
            return functools.partial(gspo_token_objective, **widths)
        case "geo_mean":
            return functools.partial(
                geometric_mean_objective,
                clip_log_ratio_low=geo_mean.clip_log_ratio_low,
                clip_log_ratio_high=geo_mean.clip_log_ratio_high,
            )
        case "cispo":
            return by_token(
                cispo_objective,
                clip_ratio_low=rule.cispo.clip_ratio_low,
                clip_ratio_high=rule.cispo.clip_ratio_high,
            )
        case "sapo":
            return by_token(
                sapo_objective,
                temperature_positive=rule.sapo.temperature_positive,
                temperature_negative=rule.sapo.temperature_negative,
            )
        case "dppo_tv":
            return divergence(divergence="tv", bound=dppo.tv_bound)
        case "dppo_kl":
            return divergence(divergence="kl", bound=dppo.kl_bound)
        case "clip_cov":
            return clip(dual_clip=0.0)
        case "kl_cov":
            return by_token(ratio_objective)
        case "gpg":
            return by_token(policy_gradient_objective)
    return clip(dual_clip=rule.dual_clip)
