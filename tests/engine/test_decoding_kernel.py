"""The decoding kernel of GPUs, interpreted, reads what XLA reads; and a GPU's chunk of tokens holds it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxflow.engine import attention, decoding_kernel
from jaxflow.engine.decoding_kernel import BLOCK_POSITIONS
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.sharding import generation_layout
from jaxflow.engine.slots import SlotPrograms
from jaxflow.models.layers import AttentionRule
from jaxflow.models.transformer import LanguageModel, describe

B, N, K, H, S = 4, 4, 2, 16, 3 * BLOCK_POSITIONS
POSITIONS = np.array([0, 130, 255, S - 1])
NEW = np.random.default_rng(0).normal(size=(3, B, 1, N, H)).astype(np.float32)
CACHE = np.random.default_rng(1).normal(size=(2, B, K, S, H)).astype(np.float32)
WHOLE = AttentionRule(scale=0.3, softcap=0.0, window=0, local=False)
NEAR = AttentionRule(scale=0.3, softcap=0.0, window=100, local=True)


def decoded(platform, rule, layout, dtype="float32", cache=CACHE):
    queries, keys, values = (jnp.asarray(new, dtype) for new in (NEW[0], NEW[1][:, :, :K], NEW[2][:, :, :K]))

    def step(queries, keys, values, cache, local):
        attend = attention.one_token(platform, POSITIONS, layout)
        given = AttentionRule(rule.scale, rule.softcap, rule.window, local)
        return attend(queries, keys, values, given, cache)[0]

    # As an argument `local` is traced: so is it where layers of both kinds are of one stage.
    given = (queries, keys, values, tuple(jnp.asarray(array, dtype) for array in cache))
    return np.asarray(jax.jit(step)(*given, rule.local), np.float32)


@pytest.fixture
def interpreted(monkeypatch):
    """Take the kernel wherever a GPU is said to be there, whatever the dtype, and interpret it."""
    mix = functools.partial(decoding_kernel.mix, interpret=True)
    monkeypatch.setattr(
        attention, "_single_token_kernel", lambda platform, *_: mix if platform == "gpu" else None
    )


@pytest.mark.parametrize("rule", [WHOLE, NEAR], ids=["whole", "near"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_reads_of_every_row_what_xla_reads(rule, dtype, interpreted):
    layout = generation_layout(tiny.mesh_of((2, 1, 2, 2)))  # rows and heads cut in two
    expected = decoded("cpu", rule, layout)
    found = decoded("gpu", rule, layout, dtype)
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == "float32" else 0.02)


def test_nothing_behind_a_row_is_mixed_in_nor_is_a_block_read_that_it_has_not_reached(interpreted):
    layout = generation_layout(tiny.ONE_DEVICE)
    expected, poisoned = decoded("cpu", WHOLE, layout), CACHE.copy()
    for row, position in enumerate(POSITIONS):
        poisoned[:, row, :, position + 1 :] = 1e3
        poisoned[:, row, :, -(-(position + 1) // BLOCK_POSITIONS) * BLOCK_POSITIONS :] = np.nan
    np.testing.assert_allclose(decoded("gpu", WHOLE, layout, cache=poisoned), expected, atol=1e-5)


MODEL = describe(dataclasses.replace(tiny.CONFIG, head_width=64, compute_dtype="bfloat16"), LanguageModel)
GREEDY = Sampling(
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    min_response_tokens=0,
    max_response_tokens=8,
    end_ids=(1,),
    pad_id=0,
)
TENSOR = make_mesh(2, 1, 4, 2, jax.devices()[:8])
STAGES = make_mesh(1, 1, 2, 2, jax.devices()[:4], pipe=2, generation_pipe=2)


def traced_for_a_gpu(model, mesh, positions, monkeypatch):
    """Return a chunk of tokens as it is on a GPU, where there is none."""
    one_token = attention.one_token
    monkeypatch.setattr(attention, "one_token", lambda _, *rest: one_token("gpu", *rest))
    programs = SlotPrograms(model, generation_layout(mesh, model.config), "bfloat16", 8)
    return programs.trace_decode(8, positions, GREEDY)


def kernels(traced):
    return str(traced.jaxpr).count("name=mha_forward")


@pytest.mark.parametrize("mesh", [TENSOR, STAGES], ids=["tensor", "stages"])
def test_a_chunk_for_gpus_holds_the_kernel(mesh, monkeypatch):
    traced = traced_for_a_gpu(MODEL, mesh, 2 * BLOCK_POSITIONS, monkeypatch)
    assert kernels(traced) > 0
    try:
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:
        assert "AbstractDevice" in str(error)
        pytest.skip("this JAX lowers kernels for GPUs that it has or has a description of")
    assert "@__gpu$xla.gpu.triton" in text


def test_a_cache_not_in_blocks_queries_apart_from_their_keys_and_float32_are_left_to_xla(monkeypatch):
    few = describe(dataclasses.replace(MODEL.config, kv_heads=1), LanguageModel)
    exact = describe(dataclasses.replace(MODEL.config, compute_dtype="float32"), LanguageModel)
    blocks = 2 * BLOCK_POSITIONS
    for model, positions in ((MODEL, blocks - 8), (few, blocks), (exact, blocks)):
        assert kernels(traced_for_a_gpu(model, TENSOR, positions, monkeypatch)) == 0
