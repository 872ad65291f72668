"""The objectives in PPO's clip's place: oracles in value and gradient, and what each of them promises."""

import functools

import family_reference as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny

from jaxflow.algorithms.aggregate import aggregate
from jaxflow.algorithms.objectives import by_token
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

FAMILY = {
    "gspo": (functools.partial(gspo_objective, clip_ratio_low=0.1, clip_ratio_high=0.2), (0.1, 0.2)),
    "gspo_token": (
        functools.partial(gspo_token_objective, clip_ratio_low=0.1, clip_ratio_high=0.2),
        (0.1, 0.2),
    ),
    "geo_mean": (
        functools.partial(geometric_mean_objective, clip_log_ratio_low=0.3, clip_log_ratio_high=0.4),
        (0.3, 0.4),
    ),
    "cispo": (by_token(cispo_objective, clip_ratio_low=0.3, clip_ratio_high=0.4), (0.3, 0.4)),
    "sapo": (by_token(sapo_objective, temperature_positive=1.0, temperature_negative=1.5), (1.0, 1.5)),
    "dppo_tv": (by_token(dppo_objective, divergence="tv", bound=0.05, ratio_bound=1.5), (0.05, 1.5)),
    "dppo_kl": (by_token(dppo_objective, divergence="kl", bound=0.02, ratio_bound=1.5), (0.02, 1.5)),
    "gpg": (by_token(policy_gradient_objective), ()),
    "ratio": (by_token(ratio_objective), ()),
}
SEQUENCE = ("gspo", "gspo_token", "geo_mean")
# Weights that are constants of the policy: the loss's slope is not that of its value.
DETACHED = ("cispo", "dppo_tv", "dppo_kl", "gspo_token")


@pytest.fixture
def tokens(draw, mask):
    """(log_probs, old_log_probs, advantages), 0 off the mask, ratios on both sides of every clip."""
    old = -np.abs(draw(*mask.shape)) - 0.1
    moved = np.minimum(old + draw(*mask.shape, scale=0.5), -0.05)
    return tuple(np.where(mask, x, 0).astype(np.float32) for x in (moved, old, draw(*mask.shape)))


def summed(name, mask, old, advantages):
    return lambda x: jnp.sum(jnp.where(mask, FAMILY[name][0](x, old, advantages, mask)[0], 0))


@pytest.mark.parametrize("name", FAMILY)
def test_values_equal_the_oracle(name, tokens, mask):
    objective, knobs = FAMILY[name]
    losses, _ = jax.jit(objective)(*tokens, mask)
    expected = oracle.objective(name, *tokens, mask, knobs)
    np.testing.assert_allclose(np.where(mask, losses, 0), expected, rtol=2e-5, atol=1e-6)
    assert np.unique(np.round(expected[mask], 6)).size > 3


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_equal_finite_differences_of_what_is_not_held_constant(name, tokens, mask):
    log_probs, old, advantages = tokens
    knobs = FAMILY[name][1]

    def value(x):
        """What the slope is of: the weights of a detached objective stay those of the point."""
        if name == "gspo_token":
            return _gspo_token_held(x, log_probs, old, advantages, mask, knobs)
        if name in DETACHED:
            held = oracle.objective(name, log_probs, old, advantages, mask, knobs)
            weights = np.divide(held, log_probs, out=np.zeros_like(held), where=log_probs != 0)
            return float(np.sum(weights * x))
        return float(np.sum(oracle.objective(name, x, old, advantages, mask, knobs)))

    gradient = jax.grad(summed(name, mask, old, advantages))(log_probs)
    np.testing.assert_allclose(gradient, reference.numeric_gradient(value, log_probs), rtol=1e-3, atol=1e-4)
    assert np.all(np.asarray(gradient)[~mask] == 0)


def _gspo_token_held(x, log_probs, old, advantages, mask, knobs):
    low, high = knobs
    total = 0.0
    for b, row in enumerate(mask):
        for t in reference.tokens_of(row):
            ratio = oracle.sequence_ratio(log_probs[b], old[b], row) * np.exp(x[b, t] - log_probs[b, t])
            advantage = float(advantages[b, t])
            total -= min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return float(total)


@pytest.mark.parametrize("name", FAMILY)
def test_at_the_old_policy_every_objective_has_the_policy_gradient(name, tokens, mask):
    # Of a response's one advantage: a sequence objective spreads its gradient over the tokens evenly.
    _, old, advantages = tokens
    advantages = np.where(mask, advantages[:, -1:] + 0.5 + np.arange(len(mask))[:, None] % 3 - 1, 0)
    advantages = advantages.astype(np.float32)
    # The reference's slope at ratio 1, where no clip holds.
    gradient = jax.grad(summed(name, mask, old, advantages))(old)
    np.testing.assert_allclose(gradient, np.where(mask, -advantages, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("distance", [25.0, -25.0, 500.0])
def test_ratios_beyond_e_to_the_twenty_stay_finite_in_value_and_slope(name, distance, tokens, mask):
    _, old, advantages = tokens
    far = np.where(mask, old + distance, 0).astype(np.float32)
    value, gradient = jax.value_and_grad(summed(name, mask, old, advantages))(far)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", FAMILY)
def test_rows_alone_give_what_they_give_together(name, tokens, mask):
    objective = FAMILY[name][0]
    whole, _ = objective(*tokens, mask)
    for b in range(len(mask)):
        alone, _ = objective(*(x[b : b + 1] for x in (*tokens, mask)))
        np.testing.assert_array_equal(np.where(mask[b], alone[0], 0), np.where(mask[b], whole[b], 0))


@pytest.mark.parametrize("name", FAMILY)
def test_an_empty_mask_has_no_loss_and_no_slope(name, tokens, mask):
    nothing = np.zeros_like(mask)
    zeros = np.zeros(mask.shape, np.float32)
    value, gradient = jax.value_and_grad(summed(name, nothing, zeros, zeros))(zeros)
    assert value == 0 and not np.asarray(gradient).any()


def test_gspo_forms_agree_where_a_response_has_one_advantage(tokens, mask):
    log_probs, old, advantages = tokens
    one = np.where(mask, advantages.sum(axis=1, keepdims=True), 0).astype(np.float32)
    # The clip of GSPO's sequence form cuts all tokens of a response or none, as the token form then does.
    forms = [jax.value_and_grad(summed(name, mask, old, one))(log_probs) for name in ("gspo", "gspo_token")]
    np.testing.assert_allclose(forms[0][0], forms[1][0], rtol=1e-5)
    np.testing.assert_allclose(forms[0][1], forms[1][1], rtol=1e-4, atol=1e-5)


def test_cispo_clips_the_weight_and_never_the_gradient(mask):
    # Where PPO's clip would leave nothing, each token still has its weight's share.
    log_probs, old = np.full((1, 3), -0.5, np.float32), np.array([[-3.0, -0.5, -0.1]], np.float32)
    objective = by_token(cispo_objective, clip_ratio_low=1.0, clip_ratio_high=4.0)
    ones = np.ones((1, 3), np.float32)
    gradient = jax.grad(lambda x: objective(x, old, ones, None)[0].sum())(log_probs)
    np.testing.assert_allclose(gradient[0], [-5.0, -1.0, -np.exp(-0.4)], rtol=1e-5)


def test_dppo_drops_only_what_its_advantage_pushes_further():
    # The probability went from 0.2 to 0.6, with a push onwards and a push back.
    moved, old = np.log(np.full((1, 2), 0.6, np.float32)), np.log(np.full((1, 2), 0.2, np.float32))
    advantages = np.array([[1.0, -1.0]], np.float32)
    for divergence, bound in (("tv", 0.15), ("kl", 0.05)):
        losses, indicators = dppo_objective(moved, old, advantages, divergence, bound, ratio_bound=20.0)
        np.testing.assert_array_equal(indicators.clipped, [[True, False]])
        np.testing.assert_allclose(losses, [[0.0, 3.0 * np.log(0.6)]], rtol=1e-5)
    # A rare token's ratio of 10 moves no probability worth the name.
    rare, before = np.log(np.array([[1e-3]], np.float32)), np.log(np.array([[1e-4]], np.float32))
    for divergence, bound in (("tv", 0.15), ("kl", 0.05)):
        _, indicators = dppo_objective(rare, before, np.ones((1, 1), np.float32), divergence, bound, 20.0)
        assert not indicators.clipped.any()


def test_sapo_s_gate_has_value_two_over_tau_and_slope_one_at_ratio_one():
    zeros, ones = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    for tau in (0.5, 1.0, 3.0):
        value, slope = jax.value_and_grad(
            lambda x, tau=tau: sapo_objective(x, zeros, ones, tau, 1.05)[0].sum()
        )(zeros)
        np.testing.assert_allclose([value, slope[0, 0]], [-2 / tau, -1], rtol=1e-6)


@pytest.mark.parametrize("name", SEQUENCE)
def test_the_mean_over_responses_is_the_paper_s_whatever_the_lengths(name, tokens, mask):
    losses, _ = FAMILY[name][0](*tokens, mask)
    expected = oracle.objective(name, *tokens, mask, FAMILY[name][1])
    rows = [reference.mean(reference.chosen(expected[b], mask[b])) for b in range(len(mask)) if mask[b].any()]
    mean = aggregate(losses, mask, "seq-mean-token-mean", tiny.counts_of(mask), 1.0)
    np.testing.assert_allclose(mean, reference.mean(rows), rtol=1e-5)
