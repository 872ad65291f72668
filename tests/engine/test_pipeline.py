"""Stages with micro-batches compute what the layers compute in a row, and send each other activations alone."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.batching import MicroBatch
from jaxflow.engine.compiled import collectives_of
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.pipeline import bubble, microbatches, over_stages
from jaxflow.engine.score import token_log_probs
from jaxflow.engine.sharding import training_layout
from jaxflow.models.layers import scan_layers
from jaxflow.models.transformer import LanguageModel, describe

DEEP = dataclasses.replace(tiny.CONFIG, layers=4)
# data, fsdp, tensor, t_g; stages; experts' axis; what the model has of its own
CASES = {
    "two stages of halves, fewer key/value heads than ranks": ((1, 1, 4, 2), 2, 1, {"kv_heads": 2}),
    "two stages, data, fsdp, windows": ((2, 2, 1, 1), 2, 1, {"sliding_window": 6, "global_every": 2}),
    "four stages, tensor": ((1, 1, 2, 1), 4, 1, {"remat": False}),
    "two stages, tensor, experts": ((1, 1, 2, 1), 2, 2, {"experts": 4, "experts_per_token": 2}),
}
ON_CASES = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if i > 0 else ()) for i, name in enumerate(CASES)]
)


def program(config, mesh):
    """Loss, log-probs and gradients of a batch, compiled for a mesh, and what it is given."""
    model, layout = describe(config, LanguageModel), training_layout(mesh, config)
    weights = layout.weights(model.names)

    def loss(params, tokens):
        said = token_log_probs(model, params, tokens, 1.0, layout)
        return said.log_probs.sum(), said.log_probs

    jitted = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=((None, None), weights))
    tokens = jax.device_put(tiny.experience(rows=8, length=16).tokens, layout.sharding(("batch", None)))
    given = tiny.weights(model, layout), tokens
    return jitted.lower(*given).compile(), given


@functools.cache
def in_a_row(config):
    compiled, given = program(config, tiny.ONE_DEVICE)
    return jax.device_get(compiled(*given))


@ON_CASES
def test_stages_give_the_loss_and_gradients_of_the_layers_in_a_row(name):
    sizes, stages, expert, changes = CASES[name]
    config = dataclasses.replace(DEEP, **changes)
    devices = jax.devices()[: math.prod(sizes[:3]) * stages * expert]
    mesh = make_mesh(*sizes, devices, pipe=stages, expert=expert)
    compiled, given = program(config, mesh)
    (loss, log_probs), gradients = jax.device_get(compiled(*given))
    (expected_loss, expected_log_probs), expected = in_a_row(config)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(log_probs, expected_log_probs, rtol=1e-5, atol=1e-5)
    for (path, leaf), wanted in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            leaf, wanted, rtol=1e-4, atol=3e-6 * np.abs(wanted).max(), err_msg=jax.tree_util.keystr(path)
        )
    text = compiled.as_text()
    exchanges = collectives_of(text)
    slots = (1, 8 // (mesh.shape["data"] * mesh.shape["fsdp"] * expert), 16, DEEP.width)
    permuted = {shape for one in exchanges if one.kind == "collective-permute" for shape in one.shapes}
    assert permuted and all(math.prod(shape) <= math.prod(slots) for shape in permuted)
    # No weights of another stage: what is gathered is of fsdp or the experts' axis alone.
    stage = mesh.shape["tensor"] * mesh.shape["micro"]
    for one in exchanges:
        if one.kind == "all-gather":
            places = [{position // stage % stages for position in group} for group in one.groups]
            assert all(len(place) == 1 for place in places), one
    in_ticks, once = text[: text.index("\nENTRY ")], text[text.index("\nENTRY ") :]
    # Replicas have nothing to tell each other before the ticks are over.
    replica = mesh.size // (mesh.shape["data"] * mesh.shape["fsdp"])
    for one in collectives_of(in_ticks):
        assert all(len({position // replica for position in group}) == 1 for group in one.groups), one
    if mesh.shape["fsdp"] > 1:
        gathered = [
            one for one in collectives_of(once) if one.kind == "all-gather" and len(one.shapes[0]) > 2
        ]
        attention = 2 * DEEP.width * DEEP.head_width * (DEEP.heads + DEEP.kv_heads)
        of_a_stage = DEEP.layers // stages * (attention + 3 * DEEP.width * DEEP.mlp_width)
        assert sum(one.elements for one in gathered) == of_a_stage // stage


def test_one_stage_is_the_plain_way():
    assert over_stages(training_layout(tiny.ONE_DEVICE)) is scan_layers


@pytest.mark.parametrize(("rows", "stages", "m"), [(1, 2, 1), (7, 2, 7), (16, 2, 8), (18, 2, 6), (13, 2, 7)])
def test_microbatches_are_at_most_four_for_each_stage_and_the_least_work(rows, stages, m):
    assert microbatches(rows, stages) == m


def test_the_bubble_is_that_of_gpipe_and_none_with_one_stage():
    passes = [MicroBatch(np.zeros((2, 6), np.int64), length) for length in (16, 64)]
    assert math.isclose(bubble(passes, 4), 3 / (6 + 3))
    assert bubble(passes, 1) == 0.0
    # 13 rows in 7 parts of 2, one of them with a row of padding.
    uneven = [MicroBatch(np.zeros((2, rows), np.int64), 16) for rows in (6, 13)]
    assert math.isclose(bubble(uneven, 2), 1 - 19 / (6 / 6 * 7 + 8 * 2))
