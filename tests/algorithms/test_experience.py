"""PPO's way from rollout to experience: the composition against the oracles, and its edges."""

import dataclasses

import jax
import numpy as np
import pytest
import reference

from jaxflow.algorithms.experience import CovarianceRule, ExperienceEstimator, OffPolicyRule

ESTIMATOR = ExperienceEstimator(
    estimator="gae",
    discount=0.99,
    gae_lambda=0.95,
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
