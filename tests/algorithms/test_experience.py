"""PPO's way from rollout to experience: the composition against the oracles, and its edges."""

import dataclasses

import family_reference
import jax
import numpy as np
import pytest
import reference

from jaxflow.algorithms.experience import CovarianceRule, ExperienceEstimator, OffPolicyRule
from jaxflow.algorithms.statistics import experience_statistics
from jaxflow.types import UserError

ESTIMATOR = ExperienceEstimator(
    estimator="gae",
    discount=0.99,
    gae_lambda=0.95,
    score_bound=0.0,
    whiten_advantages=True,
    normalize_by_std=True,
    kl_reward_estimator="k1",
    component_weights=(),
    off_policy=OffPolicyRule("off", "truncate", 0.5, 2.0, "off", 0.5, 2.0),
    covariance=CovarianceRule("off", 0.1, -1.0, 1.0, seed=0),
    reweighting="off",
    reweighting_power=2.0,
)


@pytest.fixture
def models(draw, mask):
    """Actor log-probs, reference log-probs, values; NaN off the mask."""
    return tuple(
        np.where(mask, draw(*mask.shape, scale=0.5) - 1, np.nan).astype(np.float32) for _ in range(3)
    )


@pytest.mark.parametrize("kl_reward_estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("whiten_advantages", [True, False])
def test_experience_is_kl_shaping_then_gae_then_whitening(
    rollout, scores, models, mask, kl_reward_estimator, whiten_advantages
):
    settings = dataclasses.replace(
        ESTIMATOR, kl_reward_estimator=kl_reward_estimator, whiten_advantages=whiten_advantages
    )
    actor, ref, values = models
    kl = reference.per_token(lambda p, q: reference.kl_token(p, q, kl_reward_estimator), mask, actor, ref)
    rewards = reference.shape_rewards(scores.scores, kl, mask, 0.2)
    advantages, returns = reference.gae(rewards, values, mask, 0.99, 0.95)
    experience = jax.jit(settings)(rollout, scores, *models, None, 0.2)
    expected = reference.whiten(advantages, mask) if whiten_advantages else advantages
    np.testing.assert_allclose(experience.advantages, expected, atol=1e-5)
    np.testing.assert_allclose(experience.returns, returns, atol=1e-5)


def test_a_kl_over_the_vocabulary_shapes_rewards_as_it_is_and_is_kept_for_the_figures(
    rollout, scores, models, draw, mask
):
    settings = dataclasses.replace(ESTIMATOR, kl_reward_estimator="full", whiten_advantages=False)
    measured = np.where(mask, np.abs(draw(*mask.shape)), np.nan).astype(np.float32)
    rewards = reference.shape_rewards(scores.scores, measured, mask, 0.2)
    advantages, _ = reference.gae(rewards, models[2], mask, 0.99, 0.95)
    experience = jax.jit(settings)(rollout, scores, *models, None, 0.2, measured)
    np.testing.assert_allclose(experience.advantages, advantages, atol=1e-5)
    np.testing.assert_array_equal(experience.reference_kl, np.where(mask, measured, 0))
    figures = experience_statistics(rollout, scores, experience, 0.2, "full", 4, with_critic=True)
    assert float(figures["actor/reward_kl_penalty"]) == pytest.approx(measured[mask].mean(), rel=1e-6)
    assert ESTIMATOR(rollout, scores, *models, None, 0.2).reference_kl is None
    with pytest.raises(UserError, match="needs the reference's weights beside the policy's"):
        settings(rollout, scores, *models, None, 0.2)


def test_every_field_is_zero_off_the_mask_and_carried_unchanged_on_it(rollout, scores, models, mask):
    experience = ESTIMATOR(rollout, scores, *models, None, 0.2)
    np.testing.assert_array_equal(experience.tokens, rollout.tokens)
    np.testing.assert_array_equal(experience.lengths, rollout.lengths)
    np.testing.assert_array_equal(experience.response_mask, mask)
    carried = (experience.actor_log_probs, experience.reference_log_probs, experience.values)
    for result, source in zip(carried, models, strict=True):
        np.testing.assert_array_equal(result, np.where(mask, source, 0))
    for result in (experience.advantages, experience.returns):
        assert np.all(np.asarray(result)[~mask] == 0)


def test_equal_rewards_under_a_constant_critic_whiten_to_nothing(rollout, scores, mask):
    zeros = np.zeros(mask.shape, np.float32)
    equal = dataclasses.replace(scores, scores=np.ones(len(mask), np.float32))
    undiscounted = dataclasses.replace(ESTIMATOR, discount=1.0, gae_lambda=1.0)
    experience = undiscounted(rollout, equal, zeros, zeros, zeros, None, 0.1)
    np.testing.assert_array_equal(experience.advantages, zeros)
    np.testing.assert_array_equal(experience.returns, mask.astype(np.float32))


@pytest.mark.parametrize("row", [2, 3])
def test_a_batch_of_one_token_or_of_none_has_finite_experience(rollout, scores, models, row):
    one = jax.tree.map(lambda x: x[row : row + 1], (rollout, scores, *models))
    experience = ESTIMATOR(*one, None, 0.2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(experience))
    assert not np.asarray(experience.advantages).any()


def test_a_changing_coefficient_does_not_compile_again(rollout, scores, models):
    compiled = jax.jit(ESTIMATOR)
    first, second = (compiled(rollout, scores, *models, None, beta) for beta in (0.1, 0.9))
    assert compiled._cache_size() == 1
    assert not np.allclose(first.returns, second.returns)


def test_rows_spread_over_eight_devices_give_the_experience_of_one(rollout, scores, models):
    inputs = (rollout, scores, *models)
    rows = jax.sharding.NamedSharding(
        jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.sharding.PartitionSpec("data"),
    )
    spread = jax.jit(ESTIMATOR)(*jax.device_put(inputs, rows), None, 0.2)
    whole = jax.jit(ESTIMATOR)(*inputs, None, 0.2)
    assert len(spread.advantages.sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), spread, whole)


GROUPS = np.array([0, 1, 0, 1, 1, 0, 2, 1], np.int32)
OF_GROUPS = {
    "grpo": lambda s, g, m: family_reference.grpo(s, g, m, True),
    "grpo_passk": lambda s, g, m: family_reference.grpo_passk(s, g, m, True),
    "rloo": family_reference.rloo,
    "opo": family_reference.opo,
    "gpg": family_reference.gpg,
}


@pytest.mark.parametrize("estimator", OF_GROUPS)
def test_group_estimators_judge_the_whole_reward_its_kl_included(estimator, rollout, scores, models, mask):
    actor, ref, _ = models
    kl = reference.per_token(lambda p, q: reference.kl_token(p, q, "k1"), mask, actor, ref)
    totals = reference.shape_rewards(scores.scores, kl, mask, 0.2).sum(axis=1)
    expected = family_reference.spread(OF_GROUPS[estimator](totals, GROUPS, mask), mask)
    settings = dataclasses.replace(ESTIMATOR, estimator=estimator)
    grouped = dataclasses.replace(rollout, groups=GROUPS)
    experience = jax.jit(settings)(grouped, scores, actor, ref, None, None, 0.2)
    np.testing.assert_allclose(experience.advantages, expected, rtol=1e-3, atol=1e-5)
    assert not np.asarray(experience.values).any()


def test_remax_is_over_the_greedy_score_and_refused_without(rollout, scores, models, draw, mask):
    actor, ref, _ = models
    settings, greedy = dataclasses.replace(ESTIMATOR, estimator="remax", discount=1.0), draw(len(mask))
    kl = reference.per_token(lambda p, q: reference.kl_token(p, q, "k1"), mask, actor, ref)
    rewards = reference.shape_rewards(scores.scores, kl, mask, 0.2)
    expected = family_reference.returns_to_go(rewards, mask, 1.0) - np.where(mask, greedy[:, None], 0)
    experience = settings(rollout, scores, actor, ref, None, greedy, 0.2)
    np.testing.assert_allclose(experience.advantages, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="greedy"):
        settings(rollout, scores, actor, ref, None, None, 0.2)


def test_gdpo_reads_the_components_and_is_refused_without(rollout, scores, models, draw, mask):
    components = draw(len(mask), 2)
    settings = dataclasses.replace(ESTIMATOR, estimator="gdpo", component_weights=(1.0, 0.5))
    grouped = dataclasses.replace(rollout, groups=GROUPS)
    told = dataclasses.replace(scores, components=components)
    experience = settings(grouped, told, models[0], None, None, None, 0.2)
    expected = family_reference.gdpo(components, (1.0, 0.5), GROUPS, mask, True)
    np.testing.assert_allclose(experience.advantages, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="components"):
        settings(grouped, scores, models[0], None, None, None, 0.2)


def test_scores_count_up_to_their_bound_alone(rollout, scores, models):
    loud = dataclasses.replace(scores, scores=(100 * scores.scores).astype(np.float32))
    held = dataclasses.replace(scores, scores=np.clip(loud.scores, -3, 3))
    bounded = dataclasses.replace(ESTIMATOR, score_bound=3.0)
    jax.tree.map(
        np.testing.assert_array_equal,
        bounded(rollout, loud, *models, None, 0.2),
        ESTIMATOR(rollout, held, *models, None, 0.2),
    )
    remax = dataclasses.replace(bounded, estimator="remax", reweighting="pow")
    greedy = -loud.scores
    told = remax(rollout, loud, models[0], None, None, greedy, 0.2)
    expected = remax(rollout, held, models[0], None, None, -held.scores, 0.2)
    jax.tree.map(np.testing.assert_array_equal, told, expected)


def test_without_a_reference_the_policy_is_at_distance_zero(rollout, scores, models, mask):
    for kl in ("k1", "k3"):
        settings = dataclasses.replace(ESTIMATOR, kl_reward_estimator=kl)
        alone = settings(rollout, scores, models[0], None, models[2], None, 5.0)
        beside_itself = settings(rollout, scores, models[0], models[0], models[2], None, 5.0)
        jax.tree.map(np.testing.assert_array_equal, alone, beside_itself)


def test_weights_are_importance_times_score_and_rejected_or_drawn_tokens_have_none(
    rollout, scores, models, mask
):
    rule = OffPolicyRule("token", "truncate", 0.5, 2.0, "sequence", 0.2, 5.0)
    settings = dataclasses.replace(ESTIMATOR, off_policy=rule, reweighting="pow")
    experience = jax.jit(settings)(rollout, scores, *models, None, 0.2)
    difference = np.where(mask, models[0] - rollout.rollout_log_probs, 0)
    sums = np.exp(difference.sum(axis=1, keepdims=True))
    squares = np.where(mask.any(axis=1), scores.scores.astype(np.float64) ** 2, 0)
    of_rows = squares / squares.sum() * mask.any(axis=1).sum()
    expected = np.minimum(np.exp(difference), 2.0) * ((sums >= 0.2) & (sums <= 5.0)) * of_rows[:, None]
    np.testing.assert_allclose(experience.weights, np.where(mask, expected, 0), rtol=1e-4, atol=1e-6)
    assert ESTIMATOR(rollout, scores, *models, None, 0.2).weights is None

    drop = CovarianceRule("drop", 0.2, -10.0, 10.0, seed=0)
    weights = dataclasses.replace(ESTIMATOR, covariance=drop)(rollout, scores, *models, None, 0.2).weights
    dropped = mask & (np.asarray(weights) == 0)
    assert dropped.sum() == int(0.2 * mask.sum())
    np.testing.assert_array_equal(np.asarray(weights)[mask & ~dropped], 1.0)
    penalise = dataclasses.replace(drop, effect="penalise")
    penalised = dataclasses.replace(ESTIMATOR, covariance=penalise)(
        rollout, scores, *models, None, 0.2
    ).penalised
    assert np.sum(penalised) == int(0.2 * mask.sum())
