"""Tokens go to their most probable experts, and every one of them is served."""

import jax
import numpy as np
import pytest

from jaxflow.models.experts import Choices, ExpertWeights, Routing, choose, run_experts

N, D, F, E, K = 7, 6, 5, 4, 2
GENERATOR = np.random.default_rng(0)
TOKENS, LOGITS = GENERATOR.normal(size=(N, D)).astype(np.float32), GENERATOR.normal(size=(N, E)) * 2
GATE, UP = GENERATOR.normal(size=(2, E, D, F)).astype(np.float32)
DOWN = GENERATOR.normal(size=(E, F, D)).astype(np.float32)


def by_hand(experts, shares, held):
    mixed = np.zeros((N, D))
    for n, k in np.ndindex(experts.shape):
        e = experts[n, k]
        if e in held:
            gate = TOKENS[n] @ GATE[e]
            mixed[n] += shares[n, k] * ((gate / (1 + np.exp(-gate)) * (TOKENS[n] @ UP[e])) @ DOWN[e])
    return mixed


@pytest.mark.parametrize("normalize", [True, False])
def test_the_most_probable_experts_are_chosen_by_their_share_of_all(normalize):
    chosen = choose(LOGITS, Routing(K, normalize, jax.nn.silu))
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    best = np.argsort(-probabilities, axis=1)[:, :K]
    shares = np.take_along_axis(probabilities, best, axis=1)
    shares = shares / shares.sum(axis=1, keepdims=True) if normalize else shares
    np.testing.assert_array_equal(chosen.experts, best)
    np.testing.assert_allclose(chosen.shares, shares, rtol=1e-5)


# All tokens to one expert, to two of which one device holds neither, and wherever: none is dropped.
@pytest.mark.parametrize(
    "experts",
    [np.full((N, K), 2), np.tile([0, 3], (N, 1)), GENERATOR.integers(0, E, (N, K))],
    ids=["one", "two", "any"],
)
def test_every_token_is_served_and_devices_parts_add_up(experts):
    shares = GENERATOR.random((N, K)).astype(np.float32)
    program = jax.jit(run_experts, static_argnums=(4,))
    for first, count in ((0, E), (0, 2), (2, 2)):
        held = slice(first, first + count)
        weights = ExpertWeights(GATE[held], UP[held], DOWN[held])
        actual = program(TOKENS, Choices(experts, shares), weights, first, jax.nn.silu)
        np.testing.assert_allclose(
            actual, by_hand(experts, shares, range(first, first + count)), rtol=1e-4, atol=1e-4
        )
