"""What in the rule of learning cannot be, or is hardly meant: what an algorithm needs and the config does not give."""

from __future__ import annotations

import math
from collections.abc import Iterator

from jaxflow.algorithms.advantages import CRITIC_FREE
from jaxflow.config import Config, GDPOConfig
from jaxflow.dataflow import DATAFLOWS, Dataflow, load_dataflow
from jaxflow.dataflow.objective import load_objective
from jaxflow.types import UserError

# Estimators that judge a response by the others to its prompt.
_GROUP_ESTIMATORS = tuple(name for name in CRITIC_FREE if name != "reinforce_plus_plus")
_NEEDS = {
    "gae": "a critic",
    "remax": "the scores of greedy responses",
    **dict.fromkeys(_GROUP_ESTIMATORS, "several samples of each prompt and no critic"),
    "reinforce_plus_plus": "no critic",
}
_SEQUENCE_OBJECTIVES = ("gspo", "gspo_token", "geo_mean")
# A mean log-ratio over a response moves by thousandths; above this no clip of it ever holds.
_WIDEST_SEQUENCE_CLIP = 0.1


def rule_problems(config: Config) -> Iterator[str]:
    """Say what contradicts itself or cannot be computed."""
    yield from _objective_problems(config)
    try:
        dataflow = load_dataflow(config.algorithm.name)
    except UserError:  # said by the checks of the cast
        return
    yield from _estimator_problems(config, dataflow)
    yield from _kl_problems(config, dataflow)
    yield from _off_policy_problems(config)
    yield from _sampling_problems(config, dataflow)
    if "cost" in dataflow.cast and "cost" not in dataflow.taught:
        yield from _constraint_problems(config)
    yield from _pretraining_problems(config, dataflow)
    yield from _warmup_problems(config, dataflow)


def rule_warnings(config: Config) -> Iterator[str]:
    """Say what runs and is hardly meant."""
    rule, estimator = config.algorithm, _estimator(config, load_dataflow(config.algorithm.name))
    if not rule.kl.estimated and "reference" in _placed(config):
        yield (
            "a pool holds a reference that nothing reads: the algorithm.kl coefficients that would are 0; take the"
            " role out of its pool and its weights out of memory"
        )
    if (
        estimator == "grpo"
        and not rule.normalize_by_std
        and rule.loss_aggregation != "seq-mean-token-sum-norm"
    ):
        yield (
            "algorithm.normalize_by_std = false is Dr.GRPO's, which aggregates as seq-mean-token-sum-norm; with"
            f" {rule.loss_aggregation} the bias towards short or long responses stays"
        )
    if estimator == "remax" and config.rollout.samples_per_prompt > 1:
        yield (
            f"rollout.samples_per_prompt = {config.rollout.samples_per_prompt} with remax: the greedy response to a"
            " prompt is generated once for each of its samples; 1 sample of more prompts costs less"
        )
    if rule.objective != "vanilla" and rule.off_policy.level != "off":
        yield (
            f"algorithm.off_policy.level = {rule.off_policy.level} weighs the tokens of objective"
            f" {rule.objective} as well, which its paper does not have"
        )


def _placed(config: Config) -> set[str]:
    return {role for pool in config.cluster.pools.values() for role in pool.roles}


def _estimator(config: Config, dataflow: Dataflow) -> str:
    return config.algorithm.estimator or dataflow.estimators[0]


def _estimator_problems(config: Config, dataflow: Dataflow) -> Iterator[str]:
    if "estimator" not in dataflow.cast:
        return
    rule, samples = config.algorithm, config.rollout.samples_per_prompt
    estimator = _estimator(config, dataflow)
    if estimator not in dataflow.estimators:
        estimating = [(name, other) for name, other in DATAFLOWS.items() if "estimator" in other.cast]
        fitting = [name for name, other in estimating if estimator in other.estimators]
        yield (
            f"algorithm.estimator = {estimator!r} needs {_NEEDS.get(estimator, 'what no dataflow gives')}, which"
            f" algorithm.name = {rule.name!r} does not give it: set the name to {' or '.join(fitting) or 'another'},"
            f" or the estimator to one of: {', '.join(dataflow.estimators)}"
        )
        return
    if estimator in _GROUP_ESTIMATORS and samples < 2:
        yield (
            f"rollout.samples_per_prompt = {samples}: {estimator} judges a response by the others to its prompt,"
            " and there are none; set it to at least 2"
        )
    if estimator in (*_GROUP_ESTIMATORS, "remax") and config.rollout.temperature == 0:
        yield (
            f"rollout.temperature = 0: every sample is the greedy response, so {estimator} finds no difference"
            " to learn from; set it above 0"
        )
    if estimator == "gdpo":
        yield from _component_problems(rule.gdpo)


def _component_problems(gdpo: GDPOConfig) -> Iterator[str]:
    if not gdpo.components:
        yield "algorithm.estimator = 'gdpo' needs algorithm.gdpo.components: rewards to normalise apart, as key=weight"
    for component in gdpo.components:
        key, _, weight = component.rpartition("=")
        try:
            known = bool(key) and math.isfinite(float(weight))
        except ValueError:
            known = False
        if not known:
            yield f"algorithm.gdpo.components: {component!r} is not key=weight, the weight a number"
    keys = [component.rpartition("=")[0] for component in gdpo.components]
    if len(set(keys)) < len(keys):
        yield f"algorithm.gdpo.components name a key twice: {', '.join(keys)}"


def _objective_problems(config: Config) -> Iterator[str]:
    rule = config.algorithm
    if rule.dual_clip != 0.0 and rule.dual_clip <= 1.0:
        yield f"algorithm.dual_clip = {rule.dual_clip}: must be above 1, or 0 to switch it off"
    if ":" in rule.objective:
        try:
            load_objective(rule.objective)
        except UserError as error:
            yield str(error)
    if rule.objective in ("gspo", "gspo_token"):
        for key, width in vars(rule.gspo).items():
            if width > _WIDEST_SEQUENCE_CLIP:
                yield (
                    f"algorithm.gspo.{key} = {width}: that is the width of PPO's clip of one token; GSPO clips the"
                    " mean over a response, which moves a thousand times less (the paper: 3e-4 and 4e-4)"
                )
    if rule.objective in _SEQUENCE_OBJECTIVES and not rule.loss_aggregation.startswith("seq-mean-token"):
        yield (
            f"algorithm.loss_aggregation = {rule.loss_aggregation!r}: {rule.objective} is a loss of whole responses;"
            " set it to seq-mean-token-mean (the paper's), or seq-mean-token-sum to weigh them by their length"
        )
    cov = rule.clip_cov
    if cov.covariance_low >= cov.covariance_high:
        yield (
            f"algorithm.clip_cov.covariance_low = {cov.covariance_low} leaves nothing below"
            f" algorithm.clip_cov.covariance_high = {cov.covariance_high}"
        )


def _kl_problems(config: Config, dataflow: Dataflow) -> Iterator[str]:
    kl = config.algorithm.kl
    if kl.controller == "adaptive" and kl.reward_coefficient == 0.0:
        yield (
            "algorithm.kl.reward_coefficient = 0 with algorithm.kl.controller = adaptive: the controller"
            " multiplies, so it would stay 0; start above 0 or set the controller to fixed"
        )
    if kl.estimated and "reference" in dataflow.optional and "reference" not in _placed(config):
        yield (
            f"algorithm.kl.reward_coefficient = {kl.reward_coefficient:g} and algorithm.kl.loss_coefficient ="
            f" {kl.loss_coefficient:g} need a reference, and no pool has one: add the role reference to one of"
            f" {', '.join(config.cluster.pools)}, or set both to 0"
        )


def _off_policy_problems(config: Config) -> Iterator[str]:
    rule = config.algorithm.off_policy
    if rule.bypass:
        for key in ("level", "rejection"):
            if vars(rule)[key] != "off":
                yield (
                    f"algorithm.off_policy.{key} = {vars(rule)[key]!r} with bypass: the ratio is taken against the"
                    " sampler already, and its weight would count twice; set one of them off"
                )
        if config.algorithm.kl.exact_in_rewards:
            yield (
                "algorithm.kl.reward_estimator = 'full' with algorithm.off_policy.bypass: the KL over the vocabulary is"
                " measured in the scoring pass that bypass leaves out; set the estimator to k3, or bypass to false"
            )
    for low, high, read in (
        ("lower", "upper", rule.level != "off" and rule.bounds == "mask"),
        ("rejection_lower", "rejection_upper", rule.rejection != "off"),
    ):
        if read and vars(rule)[low] > vars(rule)[high]:
            yield (
                f"algorithm.off_policy.{low} = {vars(rule)[low]} is above {high} = {vars(rule)[high]}: no token"
                " would count"
            )


def _sampling_problems(config: Config, dataflow: Dataflow) -> Iterator[str]:
    refills = config.algorithm.dynamic_sampling.max_refills
    if refills == 0:
        return
    if not dataflow.refills:
        fitting = [name for name, other in DATAFLOWS.items() if other.refills]
        yield (
            f"algorithm.dynamic_sampling.max_refills = {refills}: {config.algorithm.name} never asks for further"
            f" prompts; set it to 0, or algorithm.name to {' or '.join(fitting)}"
        )
    if config.rollout.samples_per_prompt < 2:
        yield (
            f"algorithm.dynamic_sampling.max_refills = {refills}: a group of one sample always has equal rewards,"
            " so that every step would draw all its refills; set rollout.samples_per_prompt to at least 2"
        )


def _constraint_problems(config: Config) -> Iterator[str]:
    lagrange, cost = config.algorithm.lagrange, config.cost
    if lagrange.initial > lagrange.maximum:
        yield (
            f"algorithm.lagrange.initial = {lagrange.initial} is above algorithm.lagrange.maximum ="
            f" {lagrange.maximum}"
        )
    if cost.kind == "function" and not cost.function:
        yield (
            f"algorithm.name = {config.algorithm.name!r} needs costs: set cost.function to path.py:function, or"
            " cost.kind to model and cost.weights to its directory"
        )
    if cost.kind == "model" and not cost.weights:
        yield "cost.kind = 'model' needs cost.weights: the directory of a cost model's weights"


def _pretraining_problems(config: Config, dataflow: Dataflow) -> Iterator[str]:
    coefficient, placed = config.algorithm.ptx_coefficient, "pretraining" in _placed(config)
    if coefficient > 0 and "pretraining" not in dataflow.cast:
        fitting = [name for name, other in DATAFLOWS.items() if "pretraining" in other.cast]
        yield (
            f"algorithm.ptx_coefficient = {coefficient:g}: {config.algorithm.name} has no pretraining batch; set it"
            f" to 0, or algorithm.name to {' or '.join(fitting)}"
        )
    elif coefficient > 0 and not placed:
        yield (
            f"algorithm.ptx_coefficient = {coefficient:g} needs the role pretraining in a pool: add it to one of"
            f" {', '.join(config.cluster.pools)}"
        )
    elif coefficient == 0 and placed and "pretraining" in dataflow.cast:
        yield "algorithm.ptx_coefficient = 0, but a pool has the role pretraining: take it out, or set a coefficient"
    if placed and config.data.train_files and not config.data.pretraining_files:
        yield (
            "the role pretraining imitates the built-in task's solutions, which data.train_files replaces: set"
            " data.pretraining_files to demonstrations of your own"
        )
    if config.data.pretraining_files and not placed:
        yield "data.pretraining_files are of the role pretraining, and no pool has it: add it to one, or unset them"


def _warmup_problems(config: Config, dataflow: Dataflow) -> Iterator[str]:
    steps, total = config.critic.warmup_steps, config.run.total_steps
    if steps > 0 and "critic" not in dataflow.cast:
        yield f"critic.warmup_steps = {steps}: {config.algorithm.name} has no critic; set it to 0"
    elif steps >= total > 0 and config.run.total_epochs == 0 and steps > 0:
        yield (
            f"critic.warmup_steps = {steps} leaves the policy none of run.total_steps = {total} to learn in; lower it"
        )
