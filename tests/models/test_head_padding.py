"""Padding heads change nothing and stay nothing, whatever is learnt."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from jaxflow.algorithms.losses import SupervisedLoss
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import new_state
from jaxflow.engine.train import Trainer
from jaxflow.models.decoder_layer import Attention
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.types import Demonstrations

PLAIN = dataclasses.replace(
    tiny.CONFIG, layers=1, heads=6, kv_heads=2, attention_bias=True, query_key_norm=True, remat=False
)
PADDED = dataclasses.replace(PLAIN, head_padding=1)
REAL = np.array([0, 1, 2, 4, 5, 6])  # of each group of four the last one is padding
HEADS = {"query": 2, "output": 1, "query_bias": 1}  # weight -> its dimension of heads
LAYOUT = training_layout(tiny.ONE_DEVICE)


def drawn():
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: (generator.normal(size=shape.shape) / 4).astype(np.float32),
        describe(PLAIN, LanguageModel).shapes,
    )


def widened(params):
    """The same weights with a head of zeros behind each group."""
    attention = dict(params["backbone"]["layers"]["attention"])
    for name, axis in HEADS.items():
        shape = list(attention[name].shape)
        shape[axis] = PADDED.padded_heads
        wide = np.zeros(shape, np.float32)
        wide[(slice(None),) * axis + (REAL,)] = attention[name]
        attention[name] = wide
    layers = params["backbone"]["layers"] | {"attention": attention}
    return params | {"backbone": params["backbone"] | {"layers": layers}}


def after_updates(config, params):
    model, optimizer = describe(config, LanguageModel), tiny.optimizer()
    trainer = Trainer(model, LAYOUT, optimizer, SupervisedLoss(), 1.0, 4096)
    placed = jax.device_put(jax.tree.map(np.copy, params), LAYOUT.weights(model.names))
    state = new_state(model, LAYOUT, optimizer.transformation(), placed)
    batch = tiny.experience(rows=4, length=8)
    for _ in range(3):
        state, report = trainer.update(
            state, Demonstrations(batch.tokens, batch.lengths, batch.response_mask)
        )
    return jax.device_get(state.params), report


@pytest.mark.slow
def test_padding_heads_stay_zero_and_the_others_learn_as_without_them():
    params = drawn()
    (padded, report), (plain, plain_report) = (
        after_updates(PADDED, widened(params)),
        after_updates(PLAIN, params),
    )
    for name, axis in HEADS.items():
        heads = np.moveaxis(padded["backbone"]["layers"]["attention"][name], axis, 0)
        assert not np.delete(heads, REAL, axis=0).any() and np.abs(heads[REAL]).min() > 0
    np.testing.assert_allclose(report["grad_norm"], plain_report["grad_norm"], rtol=1e-5)
    for actual, expected in zip(jax.tree.leaves(padded), jax.tree.leaves(widened(plain)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_fresh_padding_heads_are_zeros():
    attention = Attention(PADDED, nnx.Rngs(params=0))
    query, output = np.asarray(attention.query.get_value()), np.asarray(attention.output.get_value())
    for heads in (query.swapaxes(0, 1), output):
        assert not np.delete(heads, REAL, axis=0).any() and heads[REAL].all()
