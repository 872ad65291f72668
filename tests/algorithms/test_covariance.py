"""Which tokens the entropy mechanism singles out: exactly so many, the right ones, on any number of devices."""

import jax
import numpy as np
import pytest

from jaxflow.algorithms.covariance import covariances, drawn_between, largest

KEY = jax.random.key(3)


@pytest.fixture
def step():
    generator = np.random.default_rng(0)
    mask = generator.random((64, 32)) < 0.7
    log_probs, advantages = (
        np.where(mask, generator.normal(size=mask.shape), np.nan).astype(np.float32) for _ in range(2)
    )
    return log_probs, advantages, mask


def test_covariances_add_up_to_numpy_s(step):
    log_probs, advantages, mask = step
    found = np.asarray(covariances(log_probs, advantages, mask), np.float64)
    expected = np.cov(log_probs[mask], advantages[mask], bias=True)[0, 1]
    np.testing.assert_allclose(found.sum() / mask.sum(), expected, rtol=1e-3)
    assert not found[~mask].any()


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.25, 1.0])
def test_the_largest_are_as_many_as_asked_and_larger_than_all_others(step, fraction):
    log_probs, advantages, mask = step
    found = covariances(log_probs, advantages, mask)
    chosen = np.asarray(largest(found, mask, fraction))
    assert chosen.sum() == max(1, int(np.floor(np.float32(fraction) * mask.sum())))
    rest = mask & ~chosen
    assert not rest.any() or np.min(np.asarray(found)[chosen]) >= np.max(np.asarray(found)[rest])
    assert not chosen[~mask].any()


def test_draws_lie_in_the_band_are_as_many_as_asked_and_follow_the_key(step):
    log_probs, advantages, mask = step
    found = np.asarray(covariances(log_probs, advantages, mask))
    chosen = np.asarray(drawn_between(found, mask, 0.05, 0.1, 0.8, KEY))
    assert chosen.sum() == int(np.floor(0.05 * mask.sum()))
    assert np.all((found[chosen] > 0.1) & (found[chosen] < 0.8)) and not chosen[~mask].any()
    again, other = (
        np.asarray(drawn_between(found, mask, 0.05, 0.1, 0.8, k)) for k in (KEY, jax.random.key(4))
    )
    np.testing.assert_array_equal(chosen, again)
    assert np.any(chosen != other)
    # Fewer in the band than asked for: all of them.
    band = mask & (found > 2.0) & (found < 2.5)
    np.testing.assert_array_equal(drawn_between(found, mask, 1.0, 2.0, 2.5, KEY), band)


def test_nothing_is_chosen_of_an_empty_mask(step):
    log_probs, advantages, mask = step
    found = covariances(log_probs, advantages, np.zeros_like(mask))
    assert not np.asarray(largest(found, np.zeros_like(mask), 0.1)).any()
    assert not np.asarray(drawn_between(found, np.zeros_like(mask), 0.1, -1, 1, KEY)).any()


def test_the_choice_does_not_depend_on_devices(step):
    def choice(log_probs, advantages, mask):
        found = covariances(log_probs, advantages, mask)
        return largest(found, mask, 0.05), drawn_between(found, mask, 0.05, 0.1, 0.8, KEY)

    rows = jax.sharding.NamedSharding(
        jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.sharding.PartitionSpec("data"),
    )
    cut, whole = jax.jit(choice)(*jax.device_put(step, rows)), jax.jit(choice)(*step)
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
