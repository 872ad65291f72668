"""Rows of two sequences: each is scored as if it stood alone, and a pair is trained on whole."""

import jax
import numpy as np
import optax
import pytest
import tiny

from jaxflow.algorithms.preference import PreferenceLoss, RewardModelLoss
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import new_state
from jaxflow.engine.train import Trainer
from jaxflow.types import Preferences

ROWS = 7
_FIRST, _SECOND = tiny.experience(rows=ROWS, seed=1), tiny.experience(rows=ROWS, seed=2)


def stacked(name):
    return np.stack([vars(_FIRST)[name], vars(_SECOND)[name]], axis=1)


PAIRS = Preferences(
    tokens=stacked("tokens"),
    chosen_lengths=_FIRST.lengths,
    rejected_lengths=_SECOND.lengths,
    response_mask=stacked("response_mask"),
    margins=np.linspace(0, 1, ROWS, dtype=np.float32),
    chosen_harm=np.zeros(ROWS, np.float32),
    rejected_harm=np.zeros(ROWS, np.float32),
    reference_log_probs=stacked("reference_log_probs"),
)
ROLES = {
    "policy": (tiny.LANGUAGE_MODEL, PreferenceLoss("sigmoid", 0.3, 0.0)),
    "reward": (tiny.SCALAR_MODEL, RewardModelLoss(0.01)),
}


def learn(role, sizes, tokens_per_device, batch=PAIRS):
    """The gradient of one update, its report, and what measuring the same weights says."""
    model, loss = ROLES[role]
    layout = training_layout(tiny.mesh_of(sizes))
    trainer = Trainer(model, layout, tiny.optimizer(), loss, 1.0, tokens_per_device)
    weights = tiny.weights(model, layout)
    measured = trainer.measure(weights, batch)
    state, report = trainer.update(new_state(model, layout, trainer.transformation, weights), batch)
    gradient = jax.device_get(optax.tree.get(state.optimizer_state, "mu"))
    return gradient, {name: float(report[name]) for name in measured}, measured


@pytest.mark.slow
@pytest.mark.parametrize("role", ["policy", "reward"])
def test_micro_batches_and_meshes_leave_a_pair_s_update_as_it_is(role):
    expected, report, measured = learn(role, (1, 1, 1, 1), 2 * ROWS * 32)
    assert measured == pytest.approx(report, rel=1e-5)  # of the weights before the update
    cut = tiny.rows_of(PAIRS, np.random.default_rng(0).permutation(ROWS))
    for sizes, budget, batch in (((1, 1, 1, 1), 2 * 32, cut), ((2, 2, 2, 2), 4 * 32, PAIRS)):
        gradient, other, measured = learn(role, sizes, budget, batch)
        assert other == pytest.approx(report, rel=1e-4, abs=1e-5) == measured
        difference = optax.tree.norm(jax.tree.map(np.subtract, gradient, expected))
        assert difference < 1e-5 * optax.tree.norm(expected)


def test_each_sequence_of_a_row_is_scored_as_if_alone():
    layout = training_layout(tiny.ONE_DEVICE)
    scorer = Scorer(tiny.LANGUAGE_MODEL, layout, 2 * ROWS * 32, 1.0)
    weights = tiny.weights(tiny.LANGUAGE_MODEL, layout)
    together = scorer.log_probs(weights, PAIRS.tokens, PAIRS.lengths, PAIRS.response_mask).log_probs
    for index, alone in enumerate((_FIRST, _SECOND)):
        apart = scorer.log_probs(weights, alone.tokens, alone.lengths, alone.response_mask).log_probs
        np.testing.assert_allclose(together[:, index], apart, atol=2e-5)


def test_a_pair_that_no_device_can_hold_is_refused():
    with pytest.raises(ValueError, match="exceeds the micro-batch budget"):
        learn("policy", (1, 1, 1, 1), 32)
