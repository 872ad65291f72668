"""The step's figures against Python's own sums, and finite where there is nothing to measure."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference

from jaxflow.algorithms.statistics import correlation, experience_statistics, explained_variance


@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
def test_every_figure_equals_the_oracle(rollout, scores, experience, kl_estimator):
    compute = functools.partial(
        experience_statistics, kl_estimator=kl_estimator, max_response_tokens=4, with_critic=True
    )
    result = jax.jit(compute)(rollout, scores, experience, kl_coefficient=0.2)
    expected = reference.experience_statistics(rollout, scores, experience, 0.2, kl_estimator, 4)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_empty_row_has_no_say_in_any_figure(rollout, scores, experience):
    whole = experience_statistics(rollout, scores, experience, 0.2, "k1", 4, True)
    loud = dataclasses.replace(
        scores, scores=np.where(np.arange(8) == 3, 1e6, scores.scores).astype(np.float32)
    )
    without = jax.tree.map(lambda x: np.delete(x, 3, axis=0), (rollout, scores, experience))
    for other in (
        experience_statistics(rollout, loud, experience, 0.2, "k1", 4, True),
        experience_statistics(*without, 0.2, "k1", 4, True),
    ):
        for name, value in whole.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("row", [2, 3])
def test_figures_of_one_token_or_of_none_are_finite(rollout, scores, experience, row):
    one = jax.tree.map(lambda x: x[row : row + 1], (rollout, scores, experience))
    for name, value in experience_statistics(*one, 0.2, "k3", 4, True).items():
        assert np.isfinite(value), name


def test_a_sampler_that_agrees_with_the_trainer_shows_no_gap_and_correlation_one(
    rollout, scores, experience, mask
):
    same = dataclasses.replace(rollout, rollout_log_probs=np.where(mask, experience.actor_log_probs, 0))
    figures = experience_statistics(same, scores, experience, 0.2, "k1", 4, True)
    gaps = [value for name, value in figures.items() if "probs_diff" in name]
    assert len(gaps) == 5 and all(gap == 0 for gap in gaps)
    np.testing.assert_allclose(figures["training/rollout_actor_probs_pearson_corr"], 1, rtol=1e-5)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant(draw, mask):
    returns = draw(*mask.shape)
    np.testing.assert_allclose(explained_variance(returns, returns, mask), 1, rtol=1e-5)
    np.testing.assert_allclose(explained_variance(np.full_like(returns, 3), returns, mask), 0, atol=1e-4)


def test_correlation_is_minus_one_for_opposites_and_zero_for_a_constant(draw, mask):
    x = draw(*mask.shape, scale=1e-12)
    np.testing.assert_allclose(correlation(x, -3 * x, mask), -1, rtol=1e-5)
    assert correlation(x, np.full_like(x, 0.5), mask) == 0
