"""Adapters compute, learn and merge as the peft library's do."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from models.families import FAMILIES, VOCABULARY, in_our_names, torch_model

from jaxflow.engine import attention
from jaxflow.models.adapters import TARGETS, Adapters, is_adapter, join, merged, select
from jaxflow.models.layers import Surroundings
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe

NAME = "qwen2"  # with biases and tied tables
ADAPTERS = Adapters(rank=3, alpha=5.0, targets=TARGETS, base_dtype="float32")
MODEL = describe(dataclasses.replace(FAMILIES[NAME].ours, remat=True), LanguageModel, ADAPTERS)
MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
TOKENS = np.random.default_rng(0).integers(3, VOCABULARY, (3, 12))


@functools.cache
def peft_model():
    """peft's model around transformers' own, both matrices of every adapter random."""
    torch.manual_seed(3)
    modules = [path.rpartition(".")[2] for path in MODULES.values()]
    asked = peft.LoraConfig(
        r=ADAPTERS.rank, lora_alpha=ADAPTERS.alpha, target_modules=modules, init_lora_weights=False
    )
    return peft.get_peft_model(copy.deepcopy(torch_model(NAME)), asked).eval()


def adapters_in_our_names(read):
    """peft's adapters, or their gradients, as ours."""
    theirs = {
        key: np.asarray(read(weight)) for key, weight in peft_model().named_parameters() if "lora" in key
    }

    def stacked(path, half, shape):
        key = "base_model.model.model.layers.{}.{}.lora_{}.default.weight"
        return np.stack([theirs.pop(key.format(i, path, half)).T.reshape(shape) for i in range(2)])

    blocks = {"attention": {}, "mlp": {}}
    for block, layers in MODEL.shapes["backbone"]["layers"].items():
        for name in filter(lambda name: name.endswith("_adapter"), layers):
            path = MODULES[name.removesuffix("_adapter")]
            blocks[block][name] = {
                "reduce": stacked(path, "A", layers[name]["reduce"].shape[1:]),
                "expand": stacked(path, "B", layers[name]["expand"].shape[1:]),
            }
    assert not theirs
    return {"backbone": {"layers": blocks}}


def forward(model, params, tokens):
    module = model.bind(params)
    around = Surroundings(attention.whole_sequence("cpu"), lambda x, _: x)
    return module.logits(module.backbone(tokens, around))[..., :VOCABULARY]


@pytest.mark.slow
def test_outputs_gradients_and_merged_weights_are_those_of_peft():
    base = in_our_names(NAME, lambda weight: weight.detach().numpy())
    adapters = adapters_in_our_names(lambda weight: weight.detach().numpy())
    probe = np.random.default_rng(1).normal(size=(*TOKENS.shape, VOCABULARY)).astype(np.float32)
    tokens = torch.tensor(TOKENS)
    theirs = peft_model()(tokens).logits
    theirs.backward(torch.tensor(probe))

    def loss(adapters):
        logits = forward(MODEL, join(base, adapters), TOKENS)
        return jnp.sum(logits * probe), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(adapters)
    np.testing.assert_allclose(logits, theirs.detach().numpy(), atol=1e-4)
    with torch.no_grad():
        assert (theirs - torch_model(NAME)(tokens).logits).abs().max() > 0.1
    expected = adapters_in_our_names(lambda weight: weight.grad.numpy())
    for (path, gradient), wanted in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        assert 0 < np.linalg.norm(gradient - wanted) < 1e-4 * np.linalg.norm(wanted), path
    plain = jax.jit(functools.partial(merged, adapters=ADAPTERS))(join(base, adapters))
    np.testing.assert_allclose(
        jax.jit(functools.partial(forward, MODEL.base))(plain, TOKENS), theirs.detach().numpy(), atol=1e-4
    )


@pytest.mark.parametrize("kind", [LanguageModel, ScalarModel])
def test_adapters_and_a_scalar_head_are_trained_and_nothing_else(kind):
    asked = dataclasses.replace(ADAPTERS, targets=("query", "down"), base_dtype="bfloat16")
    model = describe(FAMILIES["llama2"].ours, kind, asked)
    trained, frozen = model.trained(model.shapes), model.frozen(model.shapes)
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(dict(model.shapes))
    assert sorted(trained["backbone"]["layers"]) == ["attention", "mlp"]
    assert list(trained["backbone"]["layers"]["attention"]) == ["query_adapter"]
    assert list(trained["backbone"]["layers"]["mlp"]) == ["down_adapter"]
    assert ("head" in trained) == (kind is ScalarModel)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype(jnp.bfloat16)}
    base = select(model.shapes, lambda path: not is_adapter(path))
    assert model.base.shapes == base and model.base.adapters is None


def test_a_model_without_adapters_trains_all_its_weights():
    model = describe(FAMILIES["llama2"].ours, LanguageModel)
    assert model.trained(model.shapes) == model.shapes and model.frozen(model.shapes) == {}
