"""The verifier's loss: against the oracle in float64, in pieces, and with garbage off the mask."""

import math

import jax
import numpy as np
import pytest
import reference
from tiny import counts_of

from jaxflow import types
from jaxflow.algorithms.verifier import VerifierLoss, last_value

LOSS = VerifierLoss()


def judgements(mask, labels):
    rows, length = mask.shape
    return types.Judgements(
        tokens=np.zeros((rows, length), np.int32),
        lengths=np.full(rows, length, np.int32),
        response_mask=mask,
        labels=np.asarray(labels, np.float32),
    )


@pytest.fixture
def batch(mask):
    return judgements(mask, [1, 0, 1, 1, 0, 0, 1, 0])


@pytest.fixture
def values(draw, mask):
    """Values on the mask, NaN off it: what leaks, shows."""
    return np.where(mask, draw(*mask.shape, scale=2.0), np.nan).astype(np.float32)


def oracle(values, batch):
    losses = []
    for row, mask, label in zip(values, batch.response_mask, batch.labels, strict=True):
        positions = reference.tokens_of(mask)
        if positions:
            probability = 1 / (1 + math.exp(-float(row[positions[-1]])))
            losses.append(-math.log(probability if label == 1 else 1 - probability))
    return reference.mean(losses)


def test_the_last_value_is_that_of_the_last_true_position():
    values = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], np.float32)
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(last_value(values, mask), [3, 8, 0])


def test_loss_and_parts_of_three_responses_are_those_made_by_hand():
    values = np.array([[0, math.log(3)], [7, 0], [-math.log(4), 9]], np.float32)
    batch = judgements(np.array([[1, 1], [0, 1], [1, 0]], bool), [1, 0, 1])
    # σ(log 3) = 3/4 and right; σ(0) = 1/2 and wrong; σ(−log 4) = 1/5 and right.
    loss, parts = LOSS(values, batch, counts_of(batch.response_mask))
    np.testing.assert_allclose(loss, -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 5)) / 3, rtol=1e-6)
    assert parts.keys() == {"verifier/loss", "verifier/accuracy"}
    assert parts["verifier/loss"] == loss
    np.testing.assert_allclose(parts["verifier/accuracy"], 2 / 3, rtol=1e-6)


def test_loss_and_gradient_equal_the_oracle(batch, values, mask):
    loss, gradient = jax.value_and_grad(lambda v: LOSS(v, batch, counts_of(mask))[0])(values)
    np.testing.assert_allclose(loss, oracle(values, batch), rtol=1e-5)
    expected = reference.numeric_gradient(lambda v: oracle(v, batch), values)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_one_microbatch_equals_four(batch, values, mask):
    counts = counts_of(mask)
    evaluate = jax.jit(jax.value_and_grad(lambda v, b: LOSS(v, b, counts), has_aux=True))
    (loss, parts), gradient = evaluate(values, batch)
    cuts = list(map(slice, (0, 1, 4, 6), (1, 4, 6, 8)))
    cut = [evaluate(values[rows], jax.tree.map(lambda x, rows=rows: x[rows], batch)) for rows in cuts]
    np.testing.assert_allclose(sum(part[0][0] for part in cut), loss, rtol=1e-6)
    np.testing.assert_allclose(
        sum(part[0][1]["verifier/accuracy"] for part in cut), parts["verifier/accuracy"], rtol=1e-6
    )
    np.testing.assert_allclose(np.concatenate([part[1] for part in cut]), gradient, rtol=1e-6)


def test_a_row_without_response_changes_nothing_whatever_its_label(batch, values, mask):
    empty = np.flatnonzero(~mask.any(axis=1))
    assert len(empty) == 1
    kept = np.delete(np.arange(len(mask)), empty)
    labels = batch.labels.copy()
    labels[empty] = np.nan
    whole = LOSS(values, judgements(mask, labels), counts_of(mask))
    without = LOSS(values[kept], judgements(mask[kept], labels[kept]), counts_of(mask[kept]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, without)


def test_a_batch_of_empty_responses_has_no_loss_and_no_gradient(batch, values, mask):
    empty = judgements(np.zeros_like(mask), batch.labels)
    (loss, parts), gradient = jax.value_and_grad(
        lambda v: LOSS(v, empty, counts_of(empty.response_mask)), has_aux=True
    )(values)
    assert loss == 0 and parts["verifier/accuracy"] == 0
    assert not np.asarray(gradient).any()


def test_extreme_logits_leave_loss_and_gradient_finite():
    mask = np.ones((4, 1), bool)
    batch = judgements(mask, [1, 0, 1, 0])
    values = np.array([[1e4], [1e4], [-1e4], [-1e4]], np.float32)
    loss, gradient = jax.value_and_grad(lambda v: LOSS(v, batch, counts_of(mask))[0])(values)
    np.testing.assert_allclose(loss, (0 + 1e4 + 1e4 + 0) / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0], [0.25], [-0.25], [0]], atol=1e-7)
