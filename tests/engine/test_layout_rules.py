"""Divisions of devices that cannot be are named, each with what would do; the nearest ones can be."""

import dataclasses

import jax
import pytest
import tiny

from jaxflow.engine.layout_rules import Parallelism, layout_problems, nearest_layouts
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.models.decoder_config import DecoderConfig

# 12 heads, 6 layers, 100 tokens padded to 128
MODEL = DecoderConfig(
    vocabulary_size=100, width=96, layers=6, heads=12, kv_heads=2, head_width=8, mlp_width=256
)
GOOD = Parallelism(data=2, fsdp=2, tensor=4, generation_tensor=2, pipe=2, generation_pipe=1)


def test_sizes_of_both_stages_multiply_to_the_devices():
    assert GOOD.devices == 32
    replicas = GOOD.micro_data * GOOD.data * GOOD.fsdp
    assert replicas * GOOD.generation_tensor * GOOD.generation_pipe == GOOD.devices


def test_a_division_that_can_be_has_no_problem():
    assert layout_problems(GOOD, 32, MODEL) == []


@pytest.mark.parametrize(
    ("changes", "field", "message", "fitting"),
    [
        ({"generation_tensor": 3}, "generation_tensor", "tensor = 4 cannot be divided", (4, 2, 1)),
        ({"generation_pipe": 4}, "generation_pipe", "pipe = 2 cannot be divided", (2, 1)),
        (
            {"tensor": 8},
            "tensor",
            "the model's heads = 12 cannot be divided by tensor = 8",
            (6, 12, 4, 3, 2, 1),
        ),
        ({"fsdp": 5}, "fsdp", "the model's width = 96", (6, 4, 8, 3, 2, 12, 16, 1, 24, 32)),
        ({"pipe": 4, "data": 1}, "pipe", "the model's layers = 6", (3, 6, 2, 1)),
        (
            {"tensor": 3, "generation_tensor": 1},
            "tensor",
            "the padded vocabulary = 128",
            (4, 2, 1, 8, 16, 32),
        ),
        ({"data": 3}, "data", "= 48 devices, the pool has 32", (2,)),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(changes, field, message, fitting):
    problems = layout_problems(dataclasses.replace(GOOD, **changes), 32, MODEL)
    (problem,) = [one for one in problems if message in one.message]
    assert problem.field == field
    assert sorted(problem.fitting) == sorted(fitting)
    asked = {**dataclasses.asdict(GOOD), **changes}[field]
    ratios = [max(value / asked, asked / value) for value in problem.fitting]
    assert ratios == sorted(ratios), "the nearest first"


def test_fewer_key_value_heads_than_ranks_are_no_problem():
    assert layout_problems(GOOD, 32, dataclasses.replace(MODEL, kv_heads=1)) == []


def test_the_nearest_layouts_can_be_and_nothing_nearer_is_left_out():
    asked = dataclasses.replace(GOOD, tensor=8, data=1)
    found = nearest_layouts(asked, 32, MODEL, 4)
    assert all(layout_problems(one, 32, MODEL) == [] for one in found)
    distances = [asked.distance(one) for one in found]
    assert distances == sorted(distances) and len(set(found)) == 4
    assert distances[0] == 2, "one halving and one doubling keep the number of devices"
    assert nearest_layouts(GOOD, 32, MODEL, 1) == (GOOD,)


def test_experts_are_cut_where_there_are_some():
    cut = dataclasses.replace(GOOD, data=1, expert=2)
    assert layout_problems(cut, 32, dataclasses.replace(MODEL, experts=6)) == []
    (problem,) = layout_problems(cut, 32, MODEL)
    assert (problem.field, problem.key, problem.fitting) == ("expert", "experts", (1,))
    offered = nearest_layouts(cut, 32, dataclasses.replace(MODEL, experts=6), 50)
    assert offered[0] == cut and {one.expert for one in offered} == {1, 2}
    assert {one.expert for one in nearest_layouts(cut, 32, MODEL, 50)} == {1}


def test_no_layout_is_offered_where_none_can_be():
    assert nearest_layouts(GOOD, 7 * 11, dataclasses.replace(MODEL, width=95), 3) == (
        dataclasses.replace(GOOD, data=77, fsdp=1, tensor=1, generation_tensor=1, pipe=1),
    )


def test_every_layout_that_passes_can_hold_the_model():
    model = tiny.CONFIG
    for one in nearest_layouts(Parallelism(2, 1, 4, 2, 1, 1), 8, model, 100):
        mesh = make_mesh(
            one.data,
            one.fsdp,
            one.tensor,
            one.generation_tensor,
            jax.devices(),
            one.pipe,
            one.generation_pipe,
        )
        for layout in (training_layout(mesh), generation_layout(mesh)):
            shardings = layout.fitting({"kv_heads": model.kv_heads}).weights(tiny.LANGUAGE_MODEL.names)
            jax.tree.map(
                lambda shape, sharding: sharding.shard_shape(shape.shape),
                tiny.LANGUAGE_MODEL.shapes,
                shardings,
            )
