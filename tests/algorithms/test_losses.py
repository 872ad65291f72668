"""The composed losses: against the oracle, in pieces, and with garbage off the mask."""

import dataclasses

import jax
import numpy as np
import pytest
import reference
from tiny import counts_of, policy_loss

from jaxflow import types
from jaxflow.algorithms.aggregate import AGGREGATIONS
from jaxflow.algorithms.losses import PretrainingLoss, SupervisedLoss, ValueLoss

CLIP = (0.2, 0.28, 3.0)
POLICY = policy_loss(*CLIP, length_constant=5.0)
VALUE = ValueLoss(value_clip=0.5, aggregation="token-mean", length_constant=5.0)


@pytest.fixture
def output(draw, mask):
    def field(scale):
        return np.where(mask, draw(*mask.shape, scale=scale), np.nan).astype(np.float32)

    return types.TokenLogProbs(log_probs=field(0.5) - 2, entropy=np.abs(field(1.0)))


def policy_oracle(settings, log_probs, entropy, batch):
    mask = batch.response_mask

    def term(formula, *arrays):
        losses = reference.per_token(formula, mask, *arrays)
        return reference.aggregate(losses, mask, settings.aggregation, settings.length_constant)

    objective = term(
        lambda p, q, a: reference.policy_token(p, q, a, *CLIP)[0],
        log_probs,
        batch.actor_log_probs,
        batch.advantages,
    )
    kl = term(
        lambda p, q: reference.kl_token(p, q, settings.kl_estimator), log_probs, batch.reference_log_probs
    )
    entropy = term(lambda h: h, entropy)
    return objective - settings.entropy_coefficient * entropy + settings.kl_coefficient * kl


def value_oracle(settings, values, batch):
    losses = reference.per_token(
        lambda v, o, g: reference.value_token(v, o, g, settings.value_clip)[0],
        batch.response_mask,
        values,
        batch.values,
        batch.returns,
    )
    return reference.aggregate(losses, batch.response_mask, settings.aggregation, settings.length_constant)


def pieces(tree):
    """Cut every array of a tree into four micro-batches of unequal sizes."""
    return [
        jax.tree.map(lambda x, rows=rows: x[rows], tree) for rows in map(slice, (0, 1, 4, 6), (1, 4, 6, 8))
    ]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kl_estimator", ["k1", "k2", "k3"])
def test_policy_loss_equals_the_oracle_for_every_kl_and_aggregation(
    output, experience, aggregation, kl_estimator
):
    settings = dataclasses.replace(POLICY, aggregation=aggregation, kl_estimator=kl_estimator)
    loss, _ = jax.jit(settings)(output, experience, counts_of(experience.response_mask))
    expected = policy_oracle(settings, output.log_probs, output.entropy, experience)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_policy_gradient_equals_finite_differences_and_is_zero_off_the_mask(output, experience, mask):
    gradient = jax.grad(lambda o: POLICY(o, experience, counts_of(mask))[0])(output)
    by_log_probs = reference.numeric_gradient(
        lambda x: policy_oracle(POLICY, x, output.entropy, experience), output.log_probs
    )
    by_entropy = reference.numeric_gradient(
        lambda x: policy_oracle(POLICY, output.log_probs, x, experience), output.entropy
    )
    np.testing.assert_allclose(gradient.log_probs, by_log_probs, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradient.entropy, by_entropy, rtol=1e-3, atol=1e-5)
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.asarray(leaf)[~mask] == 0)


def test_policy_parts_equal_the_oracle(output, experience, mask):
    _, parts = POLICY(output, experience, counts_of(mask))
    old_minus_new = reference.chosen(experience.actor_log_probs - output.log_probs, mask)
    tokens = zip(
        *(
            reference.chosen(x, mask)
            for x in (output.log_probs, experience.actor_log_probs, experience.advantages)
        ),
        strict=True,
    )
    outcomes = [reference.policy_token(*token, 0.2, 0.28, 3.0) for token in tokens]
    losses, clipped, clipped_lower = (reference.mean(list(column)) for column in zip(*outcomes, strict=True))
    expected = {
        "actor/pg_loss": losses,
        "actor/ppo_kl": reference.mean(old_minus_new),
        "actor/pg_clipfrac": clipped,
        "actor/pg_clipfrac_lower": clipped_lower,
        "actor/entropy": reference.mean(reference.chosen(output.entropy, mask)),
        "actor/kl_loss": reference.mean(
            [
                reference.kl_token(p, q, "k3")
                for p, q in zip(
                    reference.chosen(output.log_probs, mask),
                    reference.chosen(experience.reference_log_probs, mask),
                    strict=True,
                )
            ]
        ),
    }
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_one_microbatch_equals_four_in_loss_parts_and_gradient(output, experience, mask, aggregation):
    counts = counts_of(mask)
    for settings, predictions in (
        (dataclasses.replace(POLICY, aggregation=aggregation), output),
        (dataclasses.replace(VALUE, aggregation=aggregation), output.log_probs),
    ):
        evaluate = jax.value_and_grad(settings, has_aux=True)
        whole = evaluate(predictions, experience, counts)
        cut = [evaluate(p, e, counts) for p, e in zip(pieces(predictions), pieces(experience), strict=True)]
        summed = jax.tree.map(lambda *parts: sum(parts), *[outcome for outcome, _ in cut])
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *[gradient for _, gradient in cut])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), summed, whole[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), joined, whole[1])


def test_zero_coefficients_read_neither_reference_nor_entropy(output, experience, mask):
    settings = dataclasses.replace(POLICY, entropy_coefficient=0.0, kl_coefficient=0.0)
    broken = dataclasses.replace(experience, reference_log_probs=np.full(mask.shape, np.nan, np.float32))
    counts = counts_of(mask)
    gradient, parts = jax.grad(settings, has_aux=True)(output, broken, counts)
    assert "actor/kl_loss" not in parts
    assert not np.asarray(gradient.entropy).any()
    assert np.all(np.isfinite(gradient.log_probs))
    np.testing.assert_allclose(settings(output, broken, counts)[0], parts["actor/pg_loss"], rtol=1e-6)


@pytest.mark.parametrize("value_clip", [0.0, 0.5])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_value_loss_and_its_gradient_equal_the_oracle(draw, experience, mask, aggregation, value_clip):
    settings = dataclasses.replace(VALUE, aggregation=aggregation, value_clip=value_clip)
    values = np.where(mask, draw(*mask.shape), np.nan).astype(np.float32)
    (loss, parts), gradient = jax.value_and_grad(settings, has_aux=True)(values, experience, counts_of(mask))
    np.testing.assert_allclose(loss, value_oracle(settings, values, experience), rtol=1e-5)
    np.testing.assert_allclose(
        parts["critic/vpred_mean"], reference.mean(reference.chosen(values, mask)), rtol=1e-4
    )
    expected = reference.numeric_gradient(lambda v: value_oracle(settings, v, experience), values)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_value_clip_fraction_counts_the_clipped_tokens(draw, experience, mask):
    values = draw(*mask.shape)
    _, parts = VALUE(values, experience, counts_of(mask))
    arrays = (values, experience.values, experience.returns)
    tokens = zip(*(reference.chosen(x, mask) for x in arrays), strict=True)
    clipped = [reference.value_token(*token, 0.5)[1] for token in tokens]
    assert 0 < sum(clipped) < len(clipped)
    np.testing.assert_allclose(parts["critic/vf_clipfrac"], reference.mean(clipped), rtol=1e-6)


def test_supervised_loss_is_the_mean_negative_log_prob_of_response_tokens(output, mask):
    batch = types.Demonstrations(np.zeros(mask.shape, np.int32), np.full(len(mask), 7, np.int32), mask)
    (loss, parts), gradient = jax.value_and_grad(SupervisedLoss(), has_aux=True)(
        output, batch, counts_of(mask)
    )
    np.testing.assert_allclose(loss, -reference.mean(reference.chosen(output.log_probs, mask)), rtol=1e-5)
    assert parts == {"sft/loss": loss}
    np.testing.assert_allclose(gradient.log_probs, np.where(mask, -1 / mask.sum(), 0), rtol=1e-6)


def test_a_batch_of_empty_responses_has_no_loss_and_no_gradient(output, experience):
    empty = dataclasses.replace(experience, response_mask=np.zeros_like(experience.response_mask))
    counts = counts_of(empty.response_mask)
    for settings, predictions in ((POLICY, output), (VALUE, output.log_probs)):
        (loss, parts), gradient = jax.value_and_grad(settings, has_aux=True)(predictions, empty, counts)
        assert loss == 0 and all(part == 0 for part in parts.values())
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_a_batch_of_one_row_equals_its_oracle(output, experience):
    one_output, one = (jax.tree.map(lambda x: x[:1], tree) for tree in (output, experience))
    loss, _ = POLICY(one_output, one, counts_of(one.response_mask))
    expected = policy_oracle(POLICY, one_output.log_probs, one_output.entropy, one)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_extreme_ratios_leave_loss_and_gradient_finite(output, experience, mask):
    alternating = np.where(np.arange(mask.shape[1]) % 2 == 0, -500.0, 0.0).astype(np.float32)
    far = dataclasses.replace(output, log_probs=np.broadcast_to(alternating, mask.shape))
    (loss, _), gradient = jax.value_and_grad(POLICY, has_aux=True)(far, experience, counts_of(mask))
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient.log_probs))


def test_weights_scale_the_objective_alone_and_leave_the_counts(output, experience, draw, mask):
    weights = np.where(mask, np.abs(draw(*mask.shape)), np.nan).astype(np.float32)
    weighed = dataclasses.replace(experience, weights=weights)
    settings = dataclasses.replace(POLICY, entropy_coefficient=0.0, kl_coefficient=0.0)
    loss, _ = settings(output, weighed, counts_of(mask))
    losses = reference.per_token(
        lambda p, q, a: reference.policy_token(p, q, a, *CLIP)[0],
        mask,
        output.log_probs,
        experience.actor_log_probs,
        experience.advantages,
    )
    np.testing.assert_allclose(loss, np.sum(losses[mask] * weights[mask]) / mask.sum(), rtol=1e-5)
    ones = dataclasses.replace(experience, weights=np.where(mask, 1, np.nan).astype(np.float32))
    plain, same = (POLICY(output, batch, counts_of(mask))[0] for batch in (experience, ones))
    np.testing.assert_allclose(plain, same, rtol=1e-6)


def test_penalised_tokens_pay_their_distance_from_the_old_policy(output, experience, mask):
    chosen = mask & (np.arange(mask.size).reshape(mask.shape) % 3 == 0)
    batch, counts = dataclasses.replace(experience, penalised=chosen), counts_of(mask)
    settings = dataclasses.replace(POLICY, penalty_coefficient=0.7)
    loss, parts = settings(output, batch, counts)
    distance = np.abs(output.log_probs - experience.actor_log_probs)[chosen].sum() / mask.sum()
    np.testing.assert_allclose(loss - POLICY(output, experience, counts)[0], 0.7 * distance, rtol=1e-4)
    np.testing.assert_allclose(parts["actor/penalised_fraction"], chosen.sum() / mask.sum(), rtol=1e-6)


def test_dropped_sequences_have_no_objective_and_still_their_kl(output, experience, mask):
    far = dataclasses.replace(experience, advantages=-np.abs(experience.advantages) - 0.1)
    away = dataclasses.replace(output, log_probs=experience.actor_log_probs - 1.0)
    settings = dataclasses.replace(POLICY, negative_sequence_bound=0.5)
    gradient, parts = jax.grad(settings, has_aux=True)(away, far, counts_of(mask))
    assert parts["actor/dropped_sequences"] == 1 and parts["actor/pg_loss"] == 0
    pull = dataclasses.replace(settings, kl_coefficient=0.0)
    nothing = jax.grad(pull, has_aux=True)(away, far, counts_of(mask))[0]
    assert np.asarray(gradient.log_probs).any() and not np.asarray(nothing.log_probs).any()


def test_pretraining_loss_is_the_weighed_cross_entropy(output, mask):
    batch = types.Demonstrations(np.zeros(mask.shape, np.int32), np.full(len(mask), 7, np.int32), mask)
    loss, parts = PretrainingLoss(27.8)(output, batch, counts_of(mask))
    expected = -reference.mean(reference.chosen(output.log_probs, mask))
    np.testing.assert_allclose([loss, parts["actor/ptx_loss"]], [27.8 * expected, expected], rtol=1e-5)


def test_the_kl_over_the_vocabulary_comes_from_the_model_and_reads_no_token_s_reference(
    output, experience, draw, mask
):
    settings = dataclasses.replace(POLICY, kl_estimator="full", entropy_coefficient=0.0)
    broken = dataclasses.replace(experience, reference_log_probs=np.full(mask.shape, np.nan, np.float32))
    kl = np.where(mask, np.abs(draw(*mask.shape)), np.nan).astype(np.float32)
    told, counts = dataclasses.replace(output, reference_kl=kl), counts_of(mask)
    gradient, parts = jax.grad(settings, has_aux=True)(told, broken, counts)
    np.testing.assert_allclose(parts["actor/kl_loss"], reference.mean(reference.chosen(kl, mask)), rtol=1e-5)
    np.testing.assert_allclose(gradient.reference_kl, np.where(mask, 0.1 / mask.sum(), 0), rtol=1e-5)
    with pytest.raises(types.UserError, match="reference's weights"):
        settings(output, experience, counts)
