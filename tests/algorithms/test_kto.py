"""KTO: numbers made by hand, the loss and its slope against PyTorch, pieces, garbage off the mask, mismatched rows."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from tiny import counts_of, rows_of

from jaxflow.algorithms.preference import KTOLoss, mismatched, reward_means
from jaxflow.types import Judgements, TokenLogProbs

LOSS = KTOLoss(beta=0.5, desirable_weight=1.0, undesirable_weight=1.5)


@pytest.fixture
def judged(draw, mask):
    """Judged rows with what two policies say of them, NaN off the mask."""

    def said():
        return np.where(mask, -np.abs(draw(*mask.shape)), np.nan).astype(np.float32)

    rows, length = mask.shape
    lengths = np.array([max(np.flatnonzero(row), default=2) + 1 for row in mask], np.int32)
    batch = Judgements(
        tokens=np.arange(mask.size, dtype=np.int32).reshape(mask.shape),
        lengths=lengths,
        response_mask=mask,
        labels=(np.arange(rows) % 3 > 0).astype(np.float32),
        reference_log_probs=said(),
        reference_points=np.where(mask.any(axis=1), 0.3, np.nan).astype(np.float32),
    )
    return TokenLogProbs(said(), np.zeros((rows, length), np.float32)), batch


def test_loss_and_slope_are_pytorch_s(judged, mask):
    torch = pytest.importorskip("torch")
    said, batch = judged
    (value, parts), slope = jax.value_and_grad(
        lambda x: LOSS(dataclasses.replace(said, log_probs=x), batch, counts_of(mask)), has_aux=True
    )(said.log_probs)
    policy = torch.tensor(np.nan_to_num(said.log_probs), dtype=torch.float64, requires_grad=True)
    there = torch.tensor(mask.any(axis=1))
    wanted = torch.tensor(batch.labels > 0.5)
    moved = ((policy - torch.tensor(np.nan_to_num(batch.reference_log_probs))) * torch.tensor(mask)).sum(-1)
    gains = 0.5 * (moved - 0.3)
    losses = torch.where(wanted, 1 - torch.sigmoid(gains), 1.5 * (1 - torch.sigmoid(-gains)))
    theirs = losses[there].mean()
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
    np.testing.assert_allclose(slope, policy.grad.numpy(), rtol=1e-4, atol=1e-6)
    told = reward_means({name: float(part) for name, part in parts.items()})
    assert told["kto/desirable_share"] == pytest.approx(wanted[there].double().mean().item())
    for kind, chosen in (("desirable", wanted), ("undesirable", ~wanted)):
        expected = 0.5 * moved[chosen & there].mean().item()
        assert told[f"kto/{kind}_reward"] == pytest.approx(expected, rel=1e-4)


def test_rows_may_be_cut_into_micro_batches_anywhere(judged, mask):
    said, batch = judged
    whole, parts = LOSS(said, batch, counts_of(mask))
    cuts = (np.array([3]), np.array([0, 5, 7]), np.array([6, 4, 2, 1]))
    pieces = [LOSS(rows_of(said, rows), rows_of(batch, rows), counts_of(mask)) for rows in cuts]
    np.testing.assert_allclose(sum(value for value, _ in pieces), whole, rtol=1e-6)
    for name, part in parts.items():
        np.testing.assert_allclose(sum(piece[name] for _, piece in pieces), part, rtol=1e-5, atol=1e-6)


def one(label, moved, point):
    """A response of one token under a policy `moved` nats away from the reference."""
    mask = np.array([[False, True]])
    zeros = np.zeros((1, 2), np.float32)
    batch = Judgements(
        zeros.astype(np.int32),
        np.array([2], np.int32),
        mask,
        np.array([label], np.float32),
        zeros,
        np.array([point], np.float32),
    )
    return TokenLogProbs(np.array([[0, moved]], np.float32), zeros), batch, counts_of(mask)


def test_single_responses_made_by_hand():
    # β(ρ − z) = ½·(log 16 − log 4) = log 2: σ = 2/3.
    loss, parts = LOSS(*one(1, math.log(16), math.log(4)))
    assert float(loss) == pytest.approx(1 / 3, rel=1e-6)
    assert float(parts["kto/accuracy"]) == 1
    loss, parts = LOSS(*one(0, math.log(16), math.log(4)))
    assert float(loss) == pytest.approx(1.5 * 2 / 3, rel=1e-6)
    assert float(parts["kto/accuracy"]) == 0
    told = reward_means({name: float(part) for name, part in parts.items()})
    assert told["kto/undesirable_reward"] == pytest.approx(math.log(4), rel=1e-6)
    assert "kto/desirable_reward" not in told and not any(name.endswith("_sum") for name in told)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("moved", [1e4, -1e4])
def test_far_responses_stay_finite(label, moved):
    said, batch, counts = one(label, moved, 0.0)
    value, slope = jax.value_and_grad(lambda said: LOSS(said, batch, counts)[0])(said)
    assert np.isfinite(value) and np.isfinite(slope.log_probs).all()


def test_an_empty_batch_has_no_loss_and_no_slope(judged, mask):
    said, batch = judged
    nothing = dataclasses.replace(batch, response_mask=np.zeros_like(mask))
    value, slope = jax.value_and_grad(lambda said: LOSS(said, nothing, counts_of(mask))[0])(said)
    assert value == 0 and not np.asarray(slope.log_probs).any()


def test_a_mismatched_row_is_its_own_prompt_and_the_response_of_the_row_before(judged, mask):
    """Whatever lies between the tokens of a response, a tool's output say, does not come along."""
    _, batch = judged
    told = mismatched(batch)
    for row in range(len(mask)):
        other = row - 1
        first = np.flatnonzero(mask[row])[0] if mask[row].any() else batch.lengths[row]
        expected = [*batch.tokens[row, :first], *batch.tokens[other][mask[other]]]
        assert told.tokens[row, : told.lengths[row]].tolist() == expected
        positions = np.arange(told.tokens.shape[1])
        there = (positions >= first) & (positions < told.lengths[row])
        np.testing.assert_array_equal(told.response_mask[row], there)
        assert not told.tokens[row, told.lengths[row] :].any()
    assert told.tokens.shape[1] == told.lengths.max()
