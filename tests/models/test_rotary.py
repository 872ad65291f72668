"""Heads turn by position times frequency."""

import jax.numpy as jnp
import numpy as np

from jaxflow.models.rotary import frequencies, rotary_angles, rotate

WIDTH, THETA = 8, 10000.0


def rotated(vector, position):
    angles = rotary_angles(jnp.asarray([[position]]), frequencies(WIDTH, THETA))
    return np.asarray(rotate(jnp.asarray(vector, jnp.float32).reshape(1, 1, 1, WIDTH), angles)).ravel()


def test_rotation_at_position_zero_is_the_identity():
    np.testing.assert_array_equal(rotated(np.arange(WIDTH), 0), np.arange(WIDTH))


def test_rotation_turns_pairs_half_a_head_apart_by_position_times_frequency():
    first = rotated(np.eye(WIDTH)[1], 5)
    angle = 5 * THETA ** (-2 / WIDTH)
    expected = np.cos(angle) * np.eye(WIDTH)[1] + np.sin(angle) * np.eye(WIDTH)[5]
    np.testing.assert_allclose(first, expected, atol=1e-6)


def test_products_of_rotated_vectors_depend_on_their_distance_alone():
    query, key = np.random.default_rng(0).normal(size=(2, WIDTH))
    near, far = (rotated(query, at + 3) @ rotated(key, at) for at in (2, 900))
    np.testing.assert_allclose(near, far, rtol=1e-3)
    assert abs(near - rotated(query, 2) @ rotated(key, 2)) > 1e-2
