"""Each family is the model that transformers says it is: logits, decoding, gradients and an AdamW step."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
import tiny
import torch
from models.families import FAMILIES, VOCABULARY, in_our_names, torch_model

from jaxflow.algorithms.losses import SupervisedLoss
from jaxflow.engine import attention
from jaxflow.engine.generate import Generator
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import new_state
from jaxflow.engine.train import Trainer
from jaxflow.models.layers import Surroundings
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.types import Demonstrations

EACH_FAMILY = pytest.mark.parametrize("name", FAMILIES)
# The one with most differences stands for all in the fast core.
MOST_UNLIKE = ("gemma2",)
EACH_FAMILY_SOME_FAST = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in MOST_UNLIKE else pytest.mark.slow) for name in FAMILIES]
)
ROWS, LENGTH, NEW = 3, 14, 8
LENGTHS = np.array([14, 9, 3], np.int32)
TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
PROMPT_LENGTHS = np.array([6, 4, 1], np.int32)  # with what is generated longer than a local layer's window
GREEDY = Sampling(
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    min_response_tokens=0,
    max_response_tokens=NEW,
    end_ids=(1,),
    pad_id=2,
)


def real(lengths):
    return np.arange(LENGTH) < lengths[:, None]


@functools.cache
def ours(name):
    return describe(FAMILIES[name].ours, LanguageModel)


@functools.cache
def our_weights(name):
    return in_our_names(name, lambda weight: weight.detach().numpy())


@functools.cache
def program(name):
    def logits(params, tokens):
        module = ours(name).bind(params)
        around = Surroundings(attention.whole_sequence("cpu"), lambda x, _: x)
        return module.logits(module.backbone(tokens, around))[..., :VOCABULARY]

    return jax.jit(logits)


def their_logits(name, tokens, mask):
    return torch_model(name)(
        torch.tensor(tokens.astype(np.int64)), attention_mask=torch.tensor(mask.astype(np.int64))
    ).logits


@EACH_FAMILY
def test_logits_of_full_and_padded_batches_are_those_of_transformers(name):
    params = our_weights(name)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda shape: shape.shape, ours(name).shapes)
    assert ours(name).config.parameter_count == sum(weight.size for weight in jax.tree.leaves(params))
    for lengths in (LENGTHS, np.full(ROWS, LENGTH)):
        mask = real(lengths)
        tokens = np.where(mask, TOKENS, 2)
        with torch.no_grad():
            expected = their_logits(name, tokens, mask).numpy()[mask]
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(program(name)(params, tokens)[mask], expected, atol=1e-4)


@EACH_FAMILY_SOME_FAST
def test_greedy_tokens_are_those_of_generate_and_their_log_probs_those_of_the_full_forward(name):
    layout = generation_layout(tiny.ONE_DEVICE)
    prompts = tiny.prompts(ROWS)
    tokens = np.where(np.arange(6) < PROMPT_LENGTHS[:, None], TOKENS[:, :6], 0)
    prompts = dataclasses.replace(prompts, tokens=tokens, lengths=PROMPT_LENGTHS)
    rollout = Generator(ours(name), layout, "float32", ROWS)(our_weights(name), prompts, GREEDY, 0, 0, 0, 0)
    for row, length in enumerate(PROMPT_LENGTHS):
        given = torch.tensor(TOKENS[row : row + 1, :length].astype(np.int64))
        expected = torch_model(name).generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, do_sample=False
        )
        np.testing.assert_array_equal(rollout.tokens[row, : rollout.lengths[row]], expected[0].numpy())
    said = jax.nn.log_softmax(program(name)(our_weights(name), rollout.tokens[:, :LENGTH]))
    chosen = np.take_along_axis(np.asarray(said)[:, :-1], rollout.tokens[:, 1:LENGTH, None], axis=-1)[..., 0]
    mask = rollout.response_mask[:, 1:LENGTH]
    assert mask.sum() > ROWS
    np.testing.assert_allclose(rollout.rollout_log_probs[:, 1:LENGTH][mask], chosen[mask], atol=1e-4)


@EACH_FAMILY_SOME_FAST
def test_gradients_and_an_adamw_step_are_those_of_torch(name):
    model, layout, settings = ours(name), training_layout(tiny.ONE_DEVICE), tiny.optimizer()
    trainer = Trainer(model, layout, settings, SupervisedLoss(), 1.0, 4096)
    mask = real(LENGTHS) & (np.arange(LENGTH) > 0)
    tokens = np.where(real(LENGTHS), TOKENS, 2)
    start = jax.device_put(our_weights(name), layout.weights(model.names))
    state = new_state(model, layout, settings.transformation(), jax.tree.map(np.copy, start))
    state, report = trainer.update(state, Demonstrations(tokens, LENGTHS, mask))
    # No clip stands before Adam here, so its first moment after one update is (1 − β₁) times the gradient.
    moment = optax.tree.get(state.optimizer_state, "mu")
    gradients = jax.tree.map(lambda m: np.asarray(m) / (1 - settings.beta1), moment)

    theirs = torch_model(name)
    before = {key: weight.detach().clone() for key, weight in theirs.named_parameters()}
    said = torch.log_softmax(their_logits(name, tokens, real(LENGTHS)), dim=-1)[:, :-1]
    chosen = said.gather(-1, torch.tensor(tokens[:, 1:, None].astype(np.int64)))[..., 0]
    loss = -chosen[torch.tensor(mask[:, 1:])].mean()
    theirs.zero_grad()
    loss.backward()
    np.testing.assert_allclose(report["sft/loss"], loss.item(), rtol=1e-5)
    expected = in_our_names(name, lambda weight: weight.grad.numpy().copy())
    torch.optim.AdamW(
        theirs.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    ).step()
    moved = in_our_names(name, lambda weight: weight.detach().numpy().copy())
    theirs.load_state_dict(before, strict=False)
    for (path, gradient), wanted in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        assert np.linalg.norm(wanted) > 0, path
        assert np.linalg.norm(gradient - wanted) < 1e-3 * np.linalg.norm(wanted), path
    for (path, weight), wanted in zip(
        jax.tree.leaves_with_path(state.params), jax.tree.leaves(moved), strict=True
    ):
        np.testing.assert_allclose(weight, wanted, atol=1e-5, err_msg=jax.tree_util.keystr(path))
