"""Every registered formula, worked out by hand on a few numbers, and its paper named where it is written.

A table for each registry; a name that is registered and has no line here fails.
"""

import dataclasses
import inspect
import re
from math import exp, log

import numpy as np
import pytest
import tiny

from jaxflow.algorithms import (
    advantages,
    aggregate,
    covariance,
    group_advantages,
    importance,
    kl,
    lagrange,
    objectives,
    preference,
    selection,
    sequence_objectives,
    token_objectives,
)
from jaxflow.config import AlgorithmConfig, Config, GDPOConfig, KLConfig
from jaxflow.types import Rollout, Scores
from jaxflow.workers.rule import experience_estimator, policy_loss

# Six responses of two tokens or one to three prompts; the last prompt's scores are equal.
MASK = np.array([[1, 1], [1, 0], [1, 1], [1, 1], [1, 0], [1, 0]], bool)
SCORES = np.array([1, 0, 3, 1, 2, 2], np.float32)
GREEDY = np.array([0, 1, 1, 1, 2, 0], np.float32)
VALUES = np.where(MASK, np.array([[0.5, 0.25]]), 0).astype(np.float32)

# Of the tokens of each response; where all its tokens have one, once.
ESTIMATES = {
    # γ = λ = ½. Last tokens: s − V. First of two: −½ + ½·¼ + ¼·(s − ¼).
    "gae": [[-0.1875, 0.75], [-0.5], [0.3125, 2.75], [-0.1875, 0.75], [1.5], [1.5]],
    # Means ½ and 2, sample deviations √½ and √2.
    "grpo": [0.5**0.5, -(0.5**0.5), 0.5**0.5, -(0.5**0.5), 0, 0],
    # The best leads by 1 and by 2, over the same deviations; of equals nobody does.
    "grpo_passk": [2**0.5, 0, 2**0.5, 0, 0, 0],
    "rloo": [1, -1, 2, -2, 0, 0],
    # Baselines by length: (2·1 + 1·0)/3 and (2·3 + 2·1)/4.
    "opo": [1 / 3, -2 / 3, 1, -1, 0, 0],
    # Four of six responses are in groups that teach something: 6/4 · (s − mean).
    "gpg": [0.75, -0.75, 1.5, -1.5, 0, 0],
    # Nine tokens of returns 1 1 0 3 3 1 1 2 2: mean 14/9, sample variance (30 − 196/9)/8.
    "reinforce_plus_plus": [-0.547998, -1.534390, 1.424784, -0.547998, 0.438393, 0.438393],
    # ½ ½ −½ 1 1 −1 −1 0 0: mean 1/18, sample variance (4.75 − 0.25/9)/8.
    "reinforce_plus_plus_baseline": [0.578480, -0.723101, 1.229271, -1.373893, -0.072310, -0.072310],
    "remax": [1, -1, 2, 0, 0, 2],
    # GRPO's whitened: over tokens mean √½/9, sample variance (3.5 − ½/9)/8.
    "gdpo": [0.957893, -1.197366, 0.957893, -1.197366, -0.119737, -0.119737],
}

# π_old = ½ and π_θ = ¾, so r = 1.5, at the knobs' defaults; of an advantage of +1 and of −1.
_WEIGHED = 1.5 * -log(0.75)
OBJECTIVE_LOSSES = {
    "vanilla": (-1.2, 1.5),
    "gspo": (-1.0004, 1.5),
    "gspo_token": (-1.0004, 1.5),
    "cispo": (_WEIGHED, -_WEIGHED),
    "geo_mean": (-exp(0.4), 1.5),
    "sapo": (-4 / (1 + exp(-0.5)), 4 / 1.05 / (1 + exp(-1.05 * 0.5))),
    # ¼ of probability and 0.144 nats are over the bounds, and count where Â pushes on.
    "dppo_tv": (0.0, -_WEIGHED),
    "dppo_kl": (0.0, -_WEIGHED),
    "clip_cov": (-1.2, 1.5),
    "kl_cov": (-1.5, 1.5),
    "gpg": (-log(0.75), log(0.75)),
}
OBJECTIVE_FUNCTIONS = {
    "vanilla": objectives.clipped_objective,
    "gspo": sequence_objectives.gspo_objective,
    "gspo_token": sequence_objectives.gspo_token_objective,
    "cispo": token_objectives.cispo_objective,
    "geo_mean": sequence_objectives.geometric_mean_objective,
    "sapo": token_objectives.sapo_objective,
    "dppo_tv": token_objectives.dppo_objective,
    "dppo_kl": token_objectives.dppo_objective,
    "clip_cov": covariance,
    "kl_cov": token_objectives.ratio_objective,
    "gpg": token_objectives.policy_gradient_objective,
}

# π_θ = ½, π_ref = ¼.
KLS = {"k1": log(2), "k2": log(2) ** 2 / 2, "k3": 0.5 + log(2) - 1, "abs": log(2)}

# Tokens 1 2 in one row, 3 in the other; L = 4.
AGGREGATES = {
    "token-mean": 2.0,
    "token-sum": 6.0,
    "seq-mean-token-sum": 3.0,
    "seq-mean-token-sum-norm": 0.75,
    "seq-mean-token-mean": 2.25,
}

# Two tokens at π_old / μ = 2 and 4.
RATIOS = {"token": [2, 4], "sequence": [8, 8], "geometric": [8**0.5, 8**0.5]}
# Ratios ¼, 1 and 4 within [½, 2].
WEIGHTS = {"truncate": [0.25, 1, 2], "mask": [0, 1, 0]}
# Scores 1, −2, 0: of three draws.
DRAWS = {"pow": [0.6, 2.4, 0], "max_min": [1.5, 1.5, 0], "max_random": [2, 0.5, 0.5]}


def config_with(**changes):
    return dataclasses.replace(Config(), algorithm=dataclasses.replace(AlgorithmConfig(), **changes))


def test_the_tables_have_every_registered_name():
    for table, registry in (
        (ESTIMATES, advantages.ESTIMATORS),
        (OBJECTIVE_LOSSES, objectives.OBJECTIVES),
        (OBJECTIVE_FUNCTIONS, objectives.OBJECTIVES),
        (KLS, kl.KL_ESTIMATORS),
        (AGGREGATES, aggregate.AGGREGATIONS),
        (RATIOS, importance.LEVELS),
        (WEIGHTS, importance.BOUNDS),
        (DRAWS, selection.REWEIGHTINGS),
    ):
        assert set(table) == set(registry)


@pytest.mark.parametrize("name", ESTIMATES)
def test_advantages_by_hand(name):
    zeros = np.zeros(MASK.shape, np.float32)
    counts = MASK.sum(axis=1).astype(np.int32)
    rows = np.arange(len(MASK), dtype=np.int32)
    rollout = Rollout(
        tokens=zeros.astype(np.int32),
        lengths=counts,
        response_mask=MASK,
        rollout_log_probs=zeros,
        behaviour_log_probs=zeros,
        finished=np.ones(len(MASK), bool),
        groups=rows // 2,
        policy_updates=rows,
        stopped=np.zeros(len(MASK), bool),
    )
    half = {"discount": 0.5, "gae_lambda": 0.5} if name == "gae" else {}
    config = config_with(
        estimator=name,
        whiten_advantages=False,
        gdpo=GDPOConfig(("only=2",)),
        kl=KLConfig(reward_coefficient=0.0),
        **half,
    )
    scores = Scores(SCORES, SCORES, np.zeros(len(MASK), bool), SCORES[:, None])
    experience = experience_estimator(config)(rollout, scores, zeros, None, VALUES, GREEDY, 0.0)
    expected = np.zeros(MASK.shape)
    for row, numbers in enumerate(ESTIMATES[name]):
        expected[row, : counts[row]] = numbers
    np.testing.assert_allclose(experience.advantages, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", OBJECTIVE_LOSSES)
def test_objectives_by_hand(name):
    now, before = (np.full((2, 1), log(p), np.float32) for p in (0.75, 0.5))
    objective = policy_loss(config_with(objective=name)).objective
    losses, _ = objective(now, before, np.array([[1.0], [-1.0]], np.float32), np.ones((2, 1), bool))
    np.testing.assert_allclose(np.ravel(losses), OBJECTIVE_LOSSES[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KLS)
def test_kl_estimates_by_hand_in_rewards_and_in_losses(name):
    now, reference = (np.full((1, 1), log(p), np.float32) for p in (0.5, 0.25))
    for form in (name, f"{name}+"):
        assert float(kl.kl_estimate(now, reference, form)[0, 0]) == pytest.approx(KLS[name], rel=1e-5)
    mask = np.ones((1, 1), bool)
    shaped = kl.shape_rewards(np.ones(1, np.float32), kl.kl_estimate(now, reference, name), mask, 0.1)
    assert float(shaped[0, 0]) == pytest.approx(1 - 0.1 * KLS[name], rel=1e-5)


@pytest.mark.parametrize("mode", AGGREGATES)
def test_aggregates_by_hand(mode):
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    losses = np.array([[1, 2, 9], [3, 9, 9]], np.float32)
    told = aggregate.aggregate(losses, mask, mode, tiny.counts_of(mask), 4.0)
    assert float(told) == pytest.approx(AGGREGATES[mode], rel=1e-6)


def test_off_policy_weights_by_hand():
    now, sampler = np.log(np.array([[0.5, 0.5]], np.float32)), np.log(np.array([[0.25, 0.125]], np.float32))
    for level, expected in RATIOS.items():
        told = importance.importance_ratio(now, sampler, np.ones((1, 2), bool), level)
        np.testing.assert_allclose(told[0], expected, rtol=1e-5)
    ratios = np.array([[0.25, 1, 4]], np.float32)
    for bounds, expected in WEIGHTS.items():
        np.testing.assert_array_equal(importance.bounded_weights(ratios, bounds, 0.5, 2.0)[0], expected)


@pytest.mark.parametrize("method", DRAWS)
def test_reweighting_by_hand(method):
    told = selection.score_weights(np.array([1, -2, 0], np.float32), np.ones(3, bool), method, 2.0)
    np.testing.assert_allclose(told, DRAWS[method], rtol=1e-6)


WRITTEN = {
    **{f"estimator {name}": vars(group_advantages).get(name, advantages.gae) for name in ESTIMATES},
    **{f"objective {name}": function for name, function in OBJECTIVE_FUNCTIONS.items()},
    "constraint": lagrange,
    "adaptive KL": kl.adapt_coefficient,
    "KL in the rewards": kl.shape_rewards,
    "dynamic sampling": selection.uninformative_groups,
    "reweighting": selection.score_weights,
    "aggregation": aggregate.aggregate,
    "ratio": importance.importance_ratio,
    "bounds": importance.bounded_weights,
    "drifted sequences": importance.off_policy_sequences,
    "value clip": objectives.clipped_value_loss,
    "reward model": preference.RewardModelLoss,
    "cost model": preference.CostModelLoss,
    "dpo and ipo": preference.PreferenceLoss,
    "kto": preference.KTOLoss,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_formula_names_its_paper(name):
    assert re.search(r"arXiv:\d{4}\.\d{5}", inspect.getdoc(WRITTEN[name])), name
