"""Losses of pairs: numbers made by hand, the oracle in float64, pairs in pieces, garbage off the mask."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from tiny import counts_of, rows_of

from jaxflow import types
from jaxflow.algorithms.preference import CostModelLoss, PreferenceLoss, RewardModelLoss

# Six pairs; the last row is padding. Masks with a gap, of one token, of different lengths within a pair.
MASK = np.zeros((6, 2, 6), bool)
MASK[0, 0, 2:5] = MASK[0, 1, 2:6] = True
MASK[1, 0, 1:2] = MASK[1, 1, 1:5] = True
MASK[2, :, 3:6] = True
MASK[3, 0, [1, 2, 4]] = MASK[3, 1, [1, 3]] = True
MASK[4, 0, 4:6] = MASK[4, 1, 4:5] = True


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pairs(mask=MASK, **fields):
    rows, _, length = mask.shape
    lengths = np.full(rows, length, np.int32)
    zeros = np.zeros(rows, np.float32)
    given = {"margins": zeros, "chosen_harm": zeros, "rejected_harm": zeros} | fields
    return types.Preferences(np.zeros(mask.shape, np.int32), lengths, lengths, mask, **given)


def on_mask(x):
    return np.where(MASK, x, np.nan).astype(np.float32)


LABELLED = pairs(
    margins=np.array([0.5, 0, 0.2, 1, 0, np.nan], np.float32),
    chosen_harm=np.array([-1, -1, 1, 0, -1, np.nan], np.float32),
    rejected_harm=np.array([1, -1, 1, 0, 1, np.nan], np.float32),
    reference_log_probs=on_mask(-np.abs(draw(*MASK.shape, seed=1))),
)
VALUES = on_mask(draw(*MASK.shape, seed=2))
LOG_PROBS = on_mask(-np.abs(draw(*MASK.shape, seed=3)))
SAID = types.TokenLogProbs(LOG_PROBS, np.zeros_like(LOG_PROBS))
LOSSES = {
    "reward model": (RewardModelLoss(0.0), VALUES),
    "centred": (RewardModelLoss(0.1), VALUES),
    "cost model": (CostModelLoss(), VALUES),
    "dpo": (PreferenceLoss("sigmoid", 0.5, 0.1), SAID),
    "ipo": (PreferenceLoss("ipo", 0.5, 0.0), SAID),
}


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def oracle(name):
    """The mean over the five pairs, each by the formula of its paper."""
    losses = []
    for row in range(5):
        (w, l), (i, j) = VALUES[row], (max(np.flatnonzero(one)) for one in MASK[row])  # noqa: E741
        chosen, rejected = float(w[i]), float(l[j])
        rho_w, rho_l = (
            sum(
                float(LOG_PROBS[row, k, t] - LABELLED.reference_log_probs[row, k, t])
                for t in np.flatnonzero(one)
            )
            for k, one in enumerate(MASK[row])
        )
        lead = rho_w - rho_l
        safe, harmful = LABELLED.chosen_harm[row], LABELLED.rejected_harm[row]
        ranked = -log_sigmoid(chosen - rejected - float(LABELLED.margins[row]))
        cost = -log_sigmoid(rejected - chosen)
        cost -= log_sigmoid(harmful * rejected) if harmful else 0
        cost -= log_sigmoid(safe * chosen) if safe else 0
        losses.append(
            {
                "reward model": ranked,
                "centred": ranked + 0.1 * (chosen + rejected) ** 2,
                "cost model": cost,
                "dpo": -0.9 * log_sigmoid(0.5 * lead) - 0.1 * log_sigmoid(-0.5 * lead),
                "ipo": (lead - 1) ** 2,
            }[name]
        )
    return sum(losses) / 5


def pair_counts(mask=MASK):
    return counts_of(mask.reshape(len(mask), -1))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_papers_whatever_lies_off_the_mask(name):
    loss, said = LOSSES[name]
    value, parts = loss(said, LABELLED, pair_counts())
    assert float(value) == pytest.approx(oracle(name), rel=1e-5)
    assert all(np.isfinite(float(part)) for part in parts.values())
    gradient = jax.grad(lambda said: loss(said, LABELLED, pair_counts())[0])(said)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all() and not leaf[~MASK].any()


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_may_be_cut_into_micro_batches_anywhere(name):
    loss, said = LOSSES[name]
    whole, parts = loss(said, LABELLED, pair_counts())
    pieces = [
        loss(rows_of(said, rows), rows_of(LABELLED, rows), pair_counts())
        for rows in (np.array([3]), np.array([0, 5]), np.array([4, 2, 1]))
    ]
    np.testing.assert_allclose(sum(value for value, _ in pieces), whole, rtol=1e-6)
    for key in parts:
        np.testing.assert_allclose(sum(piece[key] for _, piece in pieces), parts[key], rtol=1e-5, atol=1e-6)


ONE = np.zeros((1, 2, 2), bool)
ONE[:, :, 1] = True


def test_a_reward_model_s_pair_made_by_hand():
    values = np.array([[[9, math.log(6)], [9, math.log(2)]]], np.float32)
    loss, parts = RewardModelLoss(0.0)(values, pairs(ONE), pair_counts(ONE))
    assert float(loss) == pytest.approx(math.log(4 / 3))  # σ(log 3) = 3/4
    assert float(parts["reward_model/accuracy"]) == 1
    assert float(parts["reward_model/score_margin"]) == pytest.approx(math.log(3))
    with_margin = pairs(ONE, margins=np.array([math.log(3)], np.float32))
    assert float(RewardModelLoss(0.0)(values, with_margin, pair_counts(ONE))[0]) == pytest.approx(math.log(2))


def test_a_cost_model_s_pair_made_by_hand():
    """The safe response costs log ½ < 0, the harmful one log 4 > 0."""
    values = np.array([[[0, math.log(1 / 2)], [0, math.log(4)]]], np.float32)
    labels = {"chosen_harm": np.array([-1], np.float32), "rejected_harm": np.array([1], np.float32)}
    loss, parts = CostModelLoss()(values, pairs(ONE, **labels), pair_counts(ONE))
    # σ(log 8) = 8/9; σ(log 4) = 4/5; σ(−log ½) = 2/3.
    assert float(loss) == pytest.approx(-math.log(8 / 9 * 4 / 5 * 2 / 3), rel=1e-6)
    assert float(parts["cost_model/accuracy"]) == 1 == float(parts["cost_model/sign_accuracy"])
    swapped = CostModelLoss()(values[:, ::-1], pairs(ONE, **labels), pair_counts(ONE))[1]
    assert float(swapped["cost_model/accuracy"]) == 0 == float(swapped["cost_model/sign_accuracy"])


@pytest.mark.parametrize(
    ("kind", "expected"),
    # ρ_w = log 4, ρ_l = −log 4, lead log 16; β = ½ gives log 4.
    [("sigmoid", math.log(5 / 4)), ("ipo", (math.log(16) - 1) ** 2)],
)
def test_a_policy_s_pair_made_by_hand(kind, expected):
    reference = np.array([[[0, -math.log(16)], [0, -math.log(4)]]], np.float32)
    policy = np.array([[[0, -math.log(4)], [0, -math.log(16)]]], np.float32)
    batch = pairs(ONE, reference_log_probs=reference)
    said = types.TokenLogProbs(policy, np.zeros_like(policy))
    loss, parts = PreferenceLoss(kind, 0.5, 0.0)(said, batch, pair_counts(ONE))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(parts["dpo/reward_margin"]) == pytest.approx(math.log(4), rel=1e-6)
    assert float(parts["dpo/chosen_reward"]) == pytest.approx(math.log(2), rel=1e-6)
    assert float(parts["dpo/chosen_log_prob"]) == pytest.approx(-math.log(4), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_far_pairs_stay_finite(name):
    loss, said = LOSSES[name]
    far = jax.tree.map(lambda leaf: 1e4 * leaf, said)
    value, gradient = jax.value_and_grad(lambda said: loss(said, LABELLED, pair_counts())[0])(far)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_longer_sequence_is_a_pair_s_length():
    batch = dataclasses.replace(
        pairs(ONE), chosen_lengths=np.array([3], np.int32), rejected_lengths=np.array([7], np.int32)
    )
    assert batch.lengths.tolist() == [7]


def test_an_unknown_kind_is_refused():
    with pytest.raises(types.UserError, match="'hinge' is unknown: choose one of sigmoid, ipo"):
        PreferenceLoss("hinge", 0.1, 0.0)(SAID, LABELLED, pair_counts())
