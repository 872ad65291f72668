"""The load of experts: Hugging Face's loss and slope, the same however a mini-batch is cut, lower for being learnt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxflow.algorithms.losses import SupervisedLoss
from jaxflow.engine.balance import Load, balance_loss, choices, counted, counted_tokens, load_notes
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import new_state
from jaxflow.engine.train import Trainer
from jaxflow.models.experts import Routing, choice_counts
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.types import Demonstrations

CONFIG = dataclasses.replace(tiny.CONFIG, mlp_width=16, experts=4, experts_per_token=2)
MODEL = describe(CONFIG, LanguageModel)
ROUTING = Routing(per_token=2, normalize=True, activation=jax.nn.silu)
MASK = np.array(
    [
        [0, 0, 1, 1, 0, 1, 0, 0],  # six tokens count, the tool's output between two responses among them
        [0, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
    ],
    bool,
)
EXPERIENCE = tiny.experience(rows=9, length=16)
BATCH = Demonstrations(EXPERIENCE.tokens, EXPERIENCE.lengths, EXPERIENCE.response_mask)


def test_what_counts_is_what_stands_before_the_last_token_that_is_learnt_from():
    expected = np.arange(8) < np.array([6, 8, 0, 1])[:, None]
    np.testing.assert_array_equal(counted(MASK), expected)
    assert counted_tokens(MASK).tolist() == [6, 8, 0, 1]
    pairs = np.stack([MASK, MASK[::-1]], axis=1)
    assert counted_tokens(pairs).tolist() == [7, 8, 8, 7]


def ours(logits, mask):
    """The loss of a mini-batch of logits [L, B, T, E] that is one micro-batch."""
    config = dataclasses.replace(CONFIG, layers=len(logits))
    often = choices(sum(choice_counts(layer, ROUTING) for layer in logits), mask)
    load = Load(often, np.int32(counted_tokens(mask).sum()))
    note = load_notes(load, config).note
    return balance_loss(sum(note(layer, ROUTING) for layer in logits), mask, load, config)


@pytest.mark.slow  # imports of PyTorch and transformers
@pytest.mark.parametrize("layers", [1, 3])
def test_loss_and_slope_are_hugging_face_s(layers):
    torch = pytest.importorskip("torch")
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = np.random.default_rng(0).normal(size=(layers, *MASK.shape, 4)).astype(np.float32)
    value, slope = jax.value_and_grad(lambda x: ours(list(x), MASK))(jnp.asarray(logits))
    theirs = torch.tensor(logits, requires_grad=True)
    attention_mask = torch.tensor(np.asarray(counted(MASK)).astype(np.int64))
    loss = load_balancing_loss_func(
        tuple(layer.reshape(-1, 4) for layer in theirs), 4, 2, attention_mask=attention_mask
    )
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(slope, theirs.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_by_hand_even_experts_cost_k_and_one_that_takes_all_costs_more():
    mask = np.ones((1, 4), bool)
    mask[0, 0] = False
    even = np.log(np.array([[4, 4, 1, 1], [1, 1, 4, 4]], np.float32))[[0, 1, 0, 1]][None, None]
    assert float(ours(list(even), mask)) == pytest.approx(2.0, rel=1e-6)
    # Probabilities 0.4, 0.4, 0.1, 0.1 of every token, which all go to the first two: 4 · (0.4 + 0.4).
    crowded = np.log(np.full((1, 1, 4, 4), [4, 4, 1, 1], np.float32))
    assert float(ours(list(crowded), mask)) == pytest.approx(3.2, rel=1e-6)


def learnt(sizes, tokens_per_device, coefficient, updates=1):
    """The gradient of the first update, and all reports."""
    data, fsdp, tensor, expert, pipe = sizes
    devices = jax.devices()[: data * fsdp * tensor * expert * pipe]
    layout = training_layout(make_mesh(data, fsdp, tensor, 1, devices, expert=expert, pipe=pipe), CONFIG)
    trainer = Trainer(MODEL, layout, tiny.optimizer(), SupervisedLoss(), 1.0, tokens_per_device, coefficient)
    state = new_state(MODEL, layout, trainer.transformation, tiny.weights(MODEL, layout))
    reports, gradient = [], None
    for _ in range(updates):
        state, report = trainer.update(state, BATCH)
        reports.append({name: float(value) for name, value in report.items()})
        gradient = (
            jax.device_get(optax.tree.get(state.optimizer_state, "mu")) if gradient is None else gradient
        )
    return gradient, reports


@pytest.mark.slow
def test_neither_micro_batches_nor_experts_nor_stages_over_devices_change_it_and_it_falls():
    expected, reports = learnt((1, 1, 1, 1, 1), 4096, 0.5, updates=12)
    losses = [report["load_balancing_loss"] for report in reports]
    assert losses[0] > losses[-1] > 2.0 - 1e-3
    for sizes, budget in (((1, 1, 1, 1, 1), 48), ((1, 2, 2, 2, 1), 48), ((1, 1, 1, 1, 2), 4096)):
        gradient, (report,) = learnt(sizes, budget, 0.5)
        assert report["load_balancing_loss"] == pytest.approx(losses[0], rel=1e-5)
        assert report["sft/loss"] == pytest.approx(reports[0]["sft/loss"], rel=1e-5)
        difference = optax.tree.norm(jax.tree.map(np.subtract, gradient, expected))
        assert difference < 1e-4 * optax.tree.norm(expected), sizes


@pytest.mark.slow
def test_off_nothing_is_counted_and_the_router_learns_from_the_loss_alone():
    without, (report,) = learnt((1, 1, 1, 1, 1), 4096, 0.0)
    assert "load_balancing_loss" not in report
    with_it, _ = learnt((1, 1, 1, 1, 1), 4096, 0.5)
    routers = [tree["backbone"]["layers"]["mlp"]["router"] for tree in (without, with_it)]
    assert np.abs(routers[1] - routers[0]).max() > 1e-4
