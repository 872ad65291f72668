"""Groups of rows that go round stages get the tokens that the layers in a row give them, at any number of stages."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.compiled import collectives_of
from jaxflow.engine.generate import Generator
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.sharding import generation_layout
from jaxflow.models.transformer import LanguageModel, describe

DEEP = dataclasses.replace(tiny.CONFIG, layers=4)
SAMPLING = Sampling(
    temperature=1.3,
    top_k=0,
    top_p=0.9,
    min_p=0.0,
    min_response_tokens=0,
    max_response_tokens=10,
    end_ids=(1, 2, 3, 4, 5),
    pad_id=0,
)
PROMPTS = tiny.prompts(rows=26)
# data, fsdp, t, t_g; p, p_g; experts' axis; what the model has of its own
CASES = {
    "two stages, of which each has windows": (
        (2, 1, 2, 1),
        2,
        2,
        1,
        {"sliding_window": 3, "global_every": 3},
    ),
    "two of four stages, tensor": ((1, 1, 2, 2), 4, 2, 1, {}),
    "four stages, few key/value heads": ((1, 1, 2, 2), 4, 4, 1, {"kv_heads": 1}),
    "two stages, experts": ((1, 1, 2, 2), 2, 2, 2, {"experts": 4, "experts_per_token": 2}),
}


def mesh_of(name):
    sizes, pipe, generation_pipe, expert, _ = CASES[name]
    return make_mesh(*sizes, jax.devices()[:8], pipe=pipe, generation_pipe=generation_pipe, expert=expert)


def config_of(name):
    return dataclasses.replace(DEEP, **CASES[name][-1])


def generate(config, mesh, slots, chunk_steps):
    model, layout = describe(config, LanguageModel), generation_layout(mesh, config)
    generator = Generator(model, layout, "float32", slots, chunk_steps)
    params = tiny.weights(model, layout)
    return generator(params, PROMPTS, SAMPLING, seed=0, step=0, purpose=0, policy_updates=0)


@functools.cache
def in_a_row(config):
    return generate(config, tiny.ONE_DEVICE, 32, 16)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if i > 0 else ()) for i, name in enumerate(CASES)]
)
def test_stages_generate_the_tokens_of_the_layers_in_a_row(name):
    """With fewer slots than rows, which move together as the last rows run on."""
    config, expected = config_of(name), in_a_row(config_of(name))
    rollout = generate(config, mesh_of(name), slots=4, chunk_steps=4)
    np.testing.assert_array_equal(rollout.lengths, expected.lengths)
    np.testing.assert_array_equal(rollout.finished, expected.finished)
    width = min(rollout.tokens.shape[1], expected.tokens.shape[1])
    np.testing.assert_array_equal(rollout.tokens[:, :width], expected.tokens[:, :width])
    for name in ("rollout_log_probs", "behaviour_log_probs"):
        np.testing.assert_allclose(
            getattr(rollout, name)[:, :width], getattr(expected, name)[:, :width], atol=1e-4
        )


def test_a_round_hands_on_activations_alone_and_keeps_its_cache_where_it_is():
    name = "two of four stages, tensor"
    config, layout = config_of(name), generation_layout(mesh_of(name), config_of(name))
    model = describe(config, LanguageModel)
    programs = Generator(model, layout, "float32", 4, 3).programs
    compiled = programs.trace_decode(4 * layout.replicas, 64, SAMPLING).lower().compile()
    text = compiled.as_text()
    loop = text[: text.index("\nENTRY ")]
    exchanges = collectives_of(loop)
    hops = [one for one in exchanges if one.kind == "collective-permute"]
    hidden = 2 * config.width  # of a group's two rows
    assert any(one.elements == hidden for one in hops)
    assert all(one.elements <= hidden for one in exchanges)
    # A slot's keys and values are written into the argument that they came in.
    cached = 2 * config.layers * 4 * 64 * config.kv_heads * config.head_width * 4 // (2 * 2)
    assert compiled.memory_analysis().alias_size_in_bytes >= cached
    pair = (1, 2, config.kv_heads // 2, 64, config.head_width)
    assert not re.search(rf"f32\[{','.join(map(str, pair))}\]\S* copy\(", loop)
