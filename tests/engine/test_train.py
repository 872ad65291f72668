"""An update is a function of its mini-batch: not of micro-batches, padding, devices or what was skipped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxflow.algorithms.losses import SupervisedLoss, ValueLoss
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import new_state
from jaxflow.engine.train import Auxiliary, Trainer, count, minibatches
from jaxflow.types import Demonstrations

POLICY = tiny.policy_loss(kl_estimator="k2")
VALUE = ValueLoss(value_clip=0.5, aggregation="seq-mean-token-mean", length_constant=32.0)
ROLES = {"actor": (tiny.LANGUAGE_MODEL, POLICY), "critic": (tiny.SCALAR_MODEL, VALUE)}
SINGLE = (1, 1, 1, 1)
BATCH = tiny.experience()
# Reductions of float32 over devices and micro-batches add up in another order; relative to the gradient's norm
# that is a few units in the last place of 2⁻²⁴ ≈ 6e-8, times the depth of the sums.
RELATIVE = 1e-5


@functools.cache
def trainer(role, sizes, tokens_per_device):
    model, loss = ROLES[role]
    return Trainer(
        model, training_layout(tiny.mesh_of(sizes)), tiny.optimizer(), loss, 1.0, tokens_per_device
    )


def fresh_state(role, sizes):
    model, layout = ROLES[role][0], training_layout(tiny.mesh_of(sizes))
    return new_state(model, layout, tiny.optimizer().transformation(), tiny.weights(model, layout))


def update(role="actor", sizes=SINGLE, tokens_per_device=4096, batch=BATCH):
    """One update from the common start: (weights, gradient, report), on the host."""
    state, report = trainer(role, sizes, tokens_per_device).update(fresh_state(role, sizes), batch)
    # No clip stands before Adam here, so its first moment after one update is (1 − β₁) times the gradient.
    first_moment = optax.tree.get(state.optimizer_state, "mu")
    gradient = jax.tree.map(lambda moment: moment / 0.1, jax.device_get(first_moment))
    return jax.device_get(state.params), gradient, {name: float(value) for name, value in report.items()}


once = functools.cache(update)


def assert_same_update(actual, expected):
    """Loss, gradient and one optimizer step agree within float32's rounding."""
    weights, gradient, report = actual
    expected_weights, expected_gradient, expected_report = expected
    assert report == pytest.approx(expected_report, rel=1e-4, abs=1e-5)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, expected_gradient))
    assert difference < RELATIVE * optax.tree.norm(expected_gradient)
    for (path, left), right in zip(
        jax.tree.leaves_with_path(weights), jax.tree.leaves(expected_weights), strict=True
    ):
        np.testing.assert_allclose(left, right, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("role", ["actor", pytest.param("critic", marks=pytest.mark.slow)])
@tiny.ON_EVERY_MESH
def test_every_mesh_makes_the_update_of_one_device(role, sizes):
    assert_same_update(update(role, sizes), once(role))


@pytest.mark.parametrize("role", ["actor", pytest.param("critic", marks=pytest.mark.slow)])
def test_one_micro_batch_equals_many(role):
    assert_same_update(update(role, tokens_per_device=96), once(role))


def test_rows_may_come_in_any_order():
    order = np.random.default_rng(3).permutation(len(BATCH.lengths))
    assert_same_update(update(batch=tiny.rows_of(BATCH, order)), once("actor"))


@pytest.mark.parametrize("role", ROLES)
def test_rows_and_positions_of_padding_change_nothing(role):
    def padded(leaf):
        return np.pad(leaf, ((0, 3),) + ((0, 9),) * (leaf.ndim - 1))

    batch = jax.tree.map(padded, BATCH)
    assert_same_update(update(role, batch=batch), once(role))


@pytest.mark.parametrize("role", ROLES)
def test_what_lies_off_the_mask_is_never_read(role):
    generator = np.random.default_rng(4)
    numbers = ("actor_log_probs", "reference_log_probs", "values", "advantages", "returns")
    poison = {
        name: np.where(BATCH.response_mask, getattr(BATCH, name), np.float32(np.nan)) for name in numbers
    }
    padding = np.arange(BATCH.tokens.shape[1]) >= BATCH.lengths[:, None]
    garbage = generator.integers(0, 50, BATCH.tokens.shape)
    tokens = np.where(padding, garbage, BATCH.tokens).astype(np.int32)
    assert_same_update(update(role, batch=dataclasses.replace(BATCH, tokens=tokens, **poison)), once(role))


@pytest.mark.slow
def test_the_kl_over_the_vocabulary_pulls_towards_the_reference_s_weights():
    """With nothing but that KL in the loss: no pull at the reference itself, and a way back from elsewhere."""
    layout = training_layout(tiny.ONE_DEVICE)
    nothing = dataclasses.replace(BATCH, advantages=0 * BATCH.advantages)
    loss = dataclasses.replace(POLICY, entropy_coefficient=0.0, kl_coefficient=1.0, kl_estimator="full")
    near = tiny.optimizer(learning_rate=3e-3)
    trained = Trainer(tiny.LANGUAGE_MODEL, layout, near, loss, 1.0, 4096)
    trained.reference = tiny.weights(tiny.LANGUAGE_MODEL, layout)
    state, report = trained.update(fresh_state("actor", SINGLE), nothing)
    assert float(report["actor/kl_loss"]) < 1e-5 and float(report["grad_norm"]) < 1e-3
    trained.reference = tiny.weights(tiny.LANGUAGE_MODEL, layout, seed=1)
    distances = []
    for _ in range(6):
        state, report = trained.update(state, nothing)
        distances.append(float(report["actor/kl_loss"]))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.9 * distances[0]


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A supervised loss with a weight."""

    weight: float

    def __call__(self, output, batch, counts):
        loss, parts = SupervisedLoss()(output, batch, counts)
        return self.weight * loss, parts


@pytest.mark.slow
@pytest.mark.parametrize("tokens_per_device", [4096, 64])
def test_an_auxiliary_batch_adds_its_own_gradient_over_its_own_counts(tokens_per_device):
    other = tiny.experience(length=24, seed=9)
    demonstrations = Demonstrations(other.tokens, other.lengths, other.response_mask)
    sgd = trainer("actor", SINGLE, tokens_per_device)

    def gradient(batch, auxiliary=None):
        state, report = sgd.epochs(fresh_state("actor", SINGLE), batch, 13, 1, 0, auxiliary)
        first_moment = optax.tree.get(state.optimizer_state, "mu")
        return jax.tree.map(lambda moment: moment / 0.1, jax.device_get(first_moment)), report

    both, report = gradient(BATCH, Auxiliary(demonstrations, Scaled(2.0)))
    alone, _ = gradient(BATCH)
    student = Trainer(
        tiny.LANGUAGE_MODEL, training_layout(tiny.ONE_DEVICE), tiny.optimizer(), SupervisedLoss(), 1.0, 4096
    )
    state, supervised = student.update(fresh_state("actor", SINGLE), demonstrations)
    lesson = jax.tree.map(lambda m: m / 0.1, jax.device_get(optax.tree.get(state.optimizer_state, "mu")))
    expected = jax.tree.map(lambda a, b: a + 2.0 * b, alone, lesson)
    assert_close_as_gradients(both, expected)
    assert report["sft/loss"] == pytest.approx(float(supervised["sft/loss"]), rel=1e-5)
    assert "actor/pg_loss" in report


def assert_close_as_gradients(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) + 1e-7


def test_a_gradient_descends_its_loss():
    demonstrations = Demonstrations(BATCH.tokens, BATCH.lengths, BATCH.response_mask)
    layout, optimizer = training_layout(tiny.ONE_DEVICE), tiny.optimizer(learning_rate=3e-3)
    student = Trainer(tiny.LANGUAGE_MODEL, layout, optimizer, SupervisedLoss(), 1.0, 4096)
    state, losses = fresh_state("actor", SINGLE), []
    for _ in range(8):
        state, report = student.update(state, demonstrations)
        losses.append(float(report["sft/loss"]))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]


def test_the_gradient_is_that_of_finite_differences():
    """Along a random direction of the last norm's scale, whose 32 numbers every logit depends on."""
    _, gradient, _ = once("actor")
    start = tiny.weights(tiny.LANGUAGE_MODEL, training_layout(tiny.ONE_DEVICE))
    direction = np.random.default_rng(5).normal(size=tiny.CONFIG.width).astype(np.float32)
    direction /= np.linalg.norm(direction)

    def loss(step):
        moved = jax.tree.map(lambda w: w.copy(), start)
        moved["backbone"]["final_norm"]["scale"] += step * direction
        state = dataclasses.replace(fresh_state("actor", SINGLE), params=moved)
        _, parts = trainer("actor", SINGLE, 4096).update(state, BATCH)
        return float(parts["actor/pg_loss"] - 0.01 * parts["actor/entropy"] + 0.1 * parts["actor/kl_loss"])

    slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    along = float(direction @ gradient["backbone"]["final_norm"]["scale"])
    assert abs(along) > 1e-2
    assert slope == pytest.approx(along, rel=2e-2)


def test_the_reported_norm_is_the_gradient_s_and_the_rate_the_schedule_s():
    _, gradient, report = once("actor")
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(gradient)))
    assert report["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert report["lr"] == pytest.approx(1e-2)
    assert report["skipped"] == 0


def bad_batch():
    advantages = BATCH.advantages.copy()
    advantages[np.nonzero(BATCH.response_mask)[0][0], np.nonzero(BATCH.response_mask)[1][0]] = np.nan
    return dataclasses.replace(BATCH, advantages=advantages)


def test_a_gradient_that_is_not_finite_leaves_weights_and_moments_untouched():
    state, _ = trainer("actor", SINGLE, 4096).update(fresh_state("actor", SINGLE), BATCH)
    before = jax.device_get((state.params, state.optimizer_state))
    for skipped in (1, 2):
        state, report = trainer("actor", SINGLE, 4096).update(state, bad_batch())
        assert not np.isfinite(report["grad_norm"])
        assert int(report["skipped"]) == int(state.skipped) == skipped
    tiny.assert_same_bits(jax.device_get((state.params, state.optimizer_state)), before)
    assert int(state.updates) == 3
    state, report = trainer("actor", SINGLE, 4096).update(state, BATCH)
    assert int(report["skipped"]) == int(state.skipped) == 0


def test_after_a_skipped_update_the_next_is_what_it_would_have_been():
    layout = training_layout(tiny.ONE_DEVICE)
    decaying = tiny.optimizer(schedule="linear", warmup_updates=2, total_updates=6, clip_norm=1.0)
    actor = Trainer(tiny.LANGUAGE_MODEL, layout, decaying, POLICY, 1.0, 4096)

    def run(batches):
        params = tiny.weights(tiny.LANGUAGE_MODEL, layout)
        state = new_state(tiny.LANGUAGE_MODEL, layout, decaying.transformation(), params)
        rates = []
        for batch in batches:
            state, report = actor.update(state, batch)
            rates.append(float(report["lr"]))
        return jax.device_get((state.params, state.optimizer_state)), rates

    straight, rates = run([BATCH, BATCH])
    with_skip, rates_with_skip = run([BATCH, bad_batch(), BATCH])
    tiny.assert_same_bits(with_skip, straight)
    assert [rates_with_skip[0], rates_with_skip[2]] == rates


def test_a_batch_without_any_response_moves_weights_by_their_decay_alone():
    empty = dataclasses.replace(BATCH, response_mask=np.zeros_like(BATCH.response_mask))
    weights, gradient, _ = update(batch=empty)
    assert all((g == 0).all() for g in jax.tree.leaves(gradient))
    start = jax.device_get(tiny.weights(tiny.LANGUAGE_MODEL, training_layout(tiny.ONE_DEVICE)))
    for after, before in zip(jax.tree.leaves(weights), jax.tree.leaves(start), strict=True):
        np.testing.assert_allclose(after, before * (1 - 1e-2 * 0.01), rtol=1e-6)


def test_counts_are_of_response_tokens_and_of_rows_that_have_some():
    assert (count(np.array([2, 0, 1])).tokens, count(np.array([2, 0, 1])).sequences) == (3, 2)
    assert (count(np.array([0])).tokens, count(np.array([0])).sequences) == (1, 1)


def mini_batches(sequences=12, minibatch_sequences=4, epochs=2, seed=0, updates_done=0):
    return [rows.tolist() for rows in minibatches(sequences, minibatch_sequences, epochs, seed, updates_done)]


@pytest.mark.parametrize(("sequences", "size"), [(12, 4), (10, 4), (7, 7), (5, 9), (6, 1)])
def test_every_epoch_sees_every_sequence_once_in_mini_batches_of_one_size_at_most(sequences, size):
    given = mini_batches(sequences, size)
    per_epoch = -(-sequences // size)
    assert len(given) == 2 * per_epoch
    for half in (given[:per_epoch], given[per_epoch:]):
        assert sorted(row for rows in half for row in rows) == list(range(sequences))
        assert all(1 <= len(rows) <= size and rows == sorted(rows) for rows in half)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
def test_every_block_of_rows_gives_each_mini_batch_as_many_rows(blocks):
    for rows in mini_batches(sequences=64, minibatch_sequences=16):
        assert np.histogram(rows, blocks, (0, 64))[0].tolist() == [16 // blocks] * blocks


def test_any_row_of_a_run_may_go_to_any_mini_batch():
    """Over many epochs each of the four rows of a run is in the first mini-batch a quarter of the time."""
    firsts = mini_batches(sequences=4, minibatch_sequences=1, epochs=2000)[::4]
    shares = np.bincount(np.ravel(firsts), minlength=4) / 2000
    np.testing.assert_allclose(shares, 0.25, atol=0.05)  # five standard deviations


def test_the_members_are_a_function_of_the_seed_and_of_the_updates_done():
    assert mini_batches() == mini_batches()
    others = [mini_batches(seed=1), mini_batches(updates_done=6), mini_batches()[3:] + mini_batches()[:3]]
    assert all(other != mini_batches() for other in others)


def epochs_and_their_updates(batch):
    """Two mini-batches of four rows: as one pass, and one update after the other."""
    batch, actor = tiny.rows_of(batch, np.arange(8)), trainer("actor", SINGLE, 4096)
    stepwise, reports = fresh_state("actor", SINGLE), []
    for rows in minibatches(8, 4, 1, 5, 0):
        stepwise, report = actor.update(stepwise, tiny.rows_of(batch, rows))
        reports.append({name: float(value) for name, value in report.items()})
    state, means = actor.epochs(fresh_state("actor", SINGLE), batch, 4, 1, 5)
    tiny.assert_same_bits(jax.device_get(state), jax.device_get(stepwise))
    return means, reports


def test_epochs_are_the_updates_of_their_mini_batches_in_turn():
    means, reports = epochs_and_their_updates(BATCH)
    assert len(reports) == 2 and means.pop("skipped_updates") == 0
    assert means == {name: pytest.approx((reports[0][name] + reports[1][name]) / 2) for name in means}


def test_a_skipped_update_is_counted_and_hides_no_one_else_s_figures():
    means, reports = epochs_and_their_updates(bad_batch())
    good = [report for report in reports if report["skipped"] == 0]
    assert len(good) == means["skipped_updates"] == 1
    assert means["actor/pg_loss"] == good[0]["actor/pg_loss"]


def test_a_row_that_exceeds_the_budget_is_refused():
    with pytest.raises(ValueError, match="exceeds the micro-batch budget of 16 tokens"):
        trainer("actor", SINGLE, 16).update(fresh_state("actor", SINGLE), BATCH)
