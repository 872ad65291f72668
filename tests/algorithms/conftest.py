"""One small awkward batch for all tests of the formulas."""

import numpy as np
import pytest

from jaxflow import types

# Among others: a response with a gap (a tool's output), one of a single token, an empty one.
MASK = np.array(
    [
        [0, 0, 1, 1, 1, 1, 1],
        [0, 1, 1, 0, 0, 1, 1],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 1, 0],
    ],
    dtype=bool,
)


@pytest.fixture
def mask():
    return MASK


@pytest.fixture
def draw():
    """Draw float32 arrays from a fixed seed."""
    generator = np.random.default_rng(7)
    return lambda *shape, scale=1.0: (scale * generator.standard_normal(shape)).astype(np.float32)


@pytest.fixture
def rollout(draw):
    lengths = np.array([max(np.flatnonzero(row), default=2) + 1 for row in MASK], np.int32)
    log_probs = np.where(MASK, -np.abs(draw(*MASK.shape)), 0).astype(np.float32)
    return types.Rollout(
        tokens=np.arange(MASK.size, dtype=np.int32).reshape(MASK.shape),
        lengths=lengths,
        response_mask=MASK,
        rollout_log_probs=log_probs,
        behaviour_log_probs=log_probs,
        finished=np.ones(len(MASK), bool),
        groups=np.arange(len(MASK), dtype=np.int32),
        policy_updates=np.arange(len(MASK), dtype=np.int32),
        stopped=np.arange(len(MASK)) % 3 == 1,
    )


@pytest.fixture
def scores(draw):
    count = len(MASK)
    return types.Scores(scores=draw(count), accuracy=np.abs(draw(count)), failed=np.arange(count) % 3 == 0)


@pytest.fixture
def experience(draw, rollout):
    """Random in every field, NaN wherever the mask is false: what leaks, shows."""

    def field(scale):
        return np.where(MASK, draw(*MASK.shape, scale=scale), np.nan).astype(np.float32)

    return types.Experience(
        tokens=rollout.tokens,
        lengths=rollout.lengths,
        response_mask=MASK,
        actor_log_probs=field(0.5) - 2,
        reference_log_probs=field(0.5) - 2,
        values=field(1.0),
        advantages=field(1.0),
        returns=field(1.0),
        policy_updates=rollout.policy_updates,
    )
