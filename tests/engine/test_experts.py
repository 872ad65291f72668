"""Experts cut over devices are those of one device: the same update, the same tokens."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
import tiny

from jaxflow.algorithms.losses import SupervisedLoss
from jaxflow.engine.compiled import collectives_of
from jaxflow.engine.generate import Generator
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.score import token_log_probs
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import new_state
from jaxflow.engine.train import Trainer
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.types import Demonstrations

CONFIG = dataclasses.replace(tiny.CONFIG, mlp_width=16, experts=4, experts_per_token=2, query_key_norm=True)
MODEL = describe(CONFIG, LanguageModel)
EXPERIENCE = tiny.experience(rows=9, length=16)
BATCH = Demonstrations(EXPERIENCE.tokens, EXPERIENCE.lengths, EXPERIENCE.response_mask)
PROMPTS = tiny.prompts(rows=9, longest=6)
GREEDY = Sampling(
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    min_response_tokens=0,
    max_response_tokens=6,
    end_ids=(1,),
    pad_id=0,
)

# name -> (data, fsdp, training tensor size, generation tensor size, expert)
MESHES = {
    "fsdp2_tensor2_to_1_expert2": (1, 2, 2, 1, 2),
    "data2_expert4": (2, 1, 1, 1, 4),
    "tensor4_to_2_expert2": (1, 1, 4, 2, 2),
}


def mesh_of(data, fsdp, tensor, generation_tensor, expert):
    devices = jax.devices()[: data * fsdp * tensor * expert]
    return make_mesh(data, fsdp, tensor, generation_tensor, devices, expert=expert)


def weights(layout):
    """Weights from NumPy: far from flat, and no program to compile."""
    generator = np.random.default_rng(0)

    def drawn(path, shape):
        spread = 0.3 if "scale" in str(path[-1]) else 3.0 if "head" in str(path[0]) else 1.0
        numbers = (
            spread * generator.normal(size=shape.shape) / np.sqrt(shape.shape[-2] if spread != 0.3 else 1)
        )
        return (numbers + (spread == 0.3)).astype(np.float32)

    return jax.device_put(jax.tree.map_with_path(drawn, MODEL.shapes), layout.weights(MODEL.names))


@functools.cache
def learnt_and_said(sizes):
    """The gradient, weights after one update, and greedy rollout of one and the same model on a mesh."""
    mesh = mesh_of(*sizes)
    layout = training_layout(mesh)
    trainer = Trainer(MODEL, layout, tiny.optimizer(), SupervisedLoss(), 1.0, 4096)
    state = new_state(MODEL, layout, tiny.optimizer().transformation(), weights(layout))
    state, report = trainer.update(state, BATCH)
    layout = generation_layout(mesh)
    rollout = Generator(MODEL, layout, "float32", 16)(weights(layout), PROMPTS, GREEDY, 0, 0, 0, 0)
    # After one update without a clip the first moment is (1 − β₁) times the gradient.
    return jax.device_get((optax.tree.get(state.optimizer_state, "mu"), state.params, report)), rollout


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_experts_over_devices_learn_and_say_what_they_do_on_one(sizes):
    (gradient, weights, report), rollout = learnt_and_said(sizes)
    (one_gradient, one_weights, one_report), one_rollout = learnt_and_said((1, 1, 1, 1, 1))
    assert report["sft/loss"] == pytest.approx(one_report["sft/loss"], rel=1e-5)
    for path, expected in jax.tree.leaves_with_path(one_gradient):
        actual = functools.reduce(lambda tree, key: tree[key.key], path, gradient)
        assert np.linalg.norm(expected) > 0, path
        assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected), path
    for actual, expected in zip(jax.tree.leaves(weights), jax.tree.leaves(one_weights), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_array_equal(rollout.tokens, one_rollout.tokens)
    np.testing.assert_allclose(rollout.rollout_log_probs, one_rollout.rollout_log_probs, atol=1e-4)


@pytest.mark.slow
def test_tokens_travel_to_experts_and_no_expert_travels():
    layout = training_layout(mesh_of(2, 1, 1, 1, 4))
    score = jax.jit(lambda params, tokens: token_log_probs(MODEL, params, tokens, 1.0, layout).log_probs)
    tokens = jax.ShapeDtypeStruct((8, 24), np.int32, sharding=layout.sharding(("batch",)))
    collectives = collectives_of(score.lower(weights(layout), tokens).compile().as_text())
    assert {one.kind for one in collectives} == {"all-gather", "reduce-scatter"}
    assert not any(CONFIG.mlp_width in shape for one in collectives for shape in one.shapes)
