"""The table of layouts: prefix rule, specs, replicas."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.generate import Generator
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import TABLE, broken_prefixes, generation_layout, training_layout
from jaxflow.models.transformer import LanguageModel, describe

MESH = tiny.mesh_of((1, 2, 4, 2))


def test_the_table_keeps_the_prefix_rule():
    assert broken_prefixes(TABLE) == []


@pytest.mark.parametrize(
    ("training", "generation"),
    [((), ("tensor",)), (("tensor", "micro"), ("micro",)), (("tensor",), ("tensor", "micro"))],
)
def test_a_broken_prefix_is_named(training, generation):
    assert broken_prefixes(TABLE | {"mlp": (training, generation)}) == ["mlp"]


def test_the_batch_is_no_weight_and_may_break_the_rule():
    training, generation = TABLE["batch"]
    assert generation != training[: len(generation)]


def test_specs_follow_the_columns():
    names = ("embed", "heads", None)
    assert training_layout(MESH).spec(names) == jax.P("fsdp", ("tensor", "micro"), None)
    assert generation_layout(MESH).spec(names) == jax.P(None, "tensor", None)


def test_replicas_are_the_shards_of_the_batch():
    assert training_layout(MESH).replicas == 2
    assert generation_layout(MESH).replicas == 4
    assert training_layout(tiny.ONE_DEVICE).replicas == 1


STAGES = make_mesh(1, 1, 4, 2, jax.devices(), pipe=2, generation_pipe=1)


def test_layers_lie_on_stages_in_training_and_the_batch_takes_the_stages_over():
    assert training_layout(STAGES).spec(("layers", "norm")) == jax.P(("pipe", "micro_pipe"), None)
    assert generation_layout(STAGES).spec(("layers", "norm")) == jax.P("pipe", None)
    assert (training_layout(STAGES).replicas, generation_layout(STAGES).replicas) == (1, 4)


@pytest.mark.parametrize(
    ("kv_heads", "training", "generation"),
    [(8, ("tensor", "micro"), ("tensor",)), (4, ("tensor",), ("tensor",)), (6, (), ()), (1, (), ())],
)
def test_fewer_heads_than_ranks_are_cut_as_far_as_they_divide_and_keep_the_prefix(
    kv_heads, training, generation
):
    mesh, sizes = tiny.mesh_of((1, 1, 8, 4)), {"kv_heads": kv_heads}
    fitted = [layout(mesh).fitting(sizes).axes for layout in (training_layout, generation_layout)]
    assert (fitted[0]["kv_heads"], fitted[1]["kv_heads"]) == (training, generation)
    assert broken_prefixes({"kv_heads": (fitted[0]["kv_heads"], fitted[1]["kv_heads"])}) == []
    assert fitted[0]["heads"] == TABLE["heads"][0], "the others stay"


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_fewer_key_value_heads_than_ranks_give_the_same_log_probs_and_tokens(kv_heads):
    model = describe(dataclasses.replace(tiny.CONFIG, kv_heads=kv_heads), LanguageModel)
    batch, prompts = tiny.experience(rows=4), tiny.prompts(rows=4)
    greedy = Sampling(
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        min_response_tokens=0,
        max_response_tokens=8,
        end_ids=(1,),
        pad_id=0,
    )
    found = []
    for sizes in ((1, 1, 1, 1), (1, 1, 8, 2)):
        mesh, heads = tiny.mesh_of(sizes), {"kv_heads": kv_heads}
        training, generation = training_layout(mesh).fitting(heads), generation_layout(mesh).fitting(heads)
        scorer = Scorer(model, training, 256, 1.0)
        scored = scorer.log_probs(
            tiny.weights(model, training), batch.tokens, batch.lengths, batch.response_mask
        )
        generator = Generator(model, generation, "float32", 4)
        rollout = generator(
            tiny.weights(model, generation),
            prompts,
            greedy,
            seed=0,
            step=0,
            purpose=0,
            policy_updates=0,
        )
        found.append((scored.log_probs, rollout.tokens))
    np.testing.assert_allclose(found[1][0], found[0][0], atol=2e-5)
    np.testing.assert_array_equal(found[1][1], found[0][1])


@pytest.mark.parametrize(
    "mesh", [*map(tiny.mesh_of, tiny.MESHES.values()), STAGES], ids=[*tiny.MESHES, "stages"]
)
def test_each_generation_shard_contains_its_device_s_training_shard(mesh):
    shapes = jax.tree.leaves(tiny.LANGUAGE_MODEL.shapes)
    training = jax.tree.leaves(training_layout(mesh).weights(tiny.LANGUAGE_MODEL.names))
    generation = jax.tree.leaves(generation_layout(mesh).weights(tiny.LANGUAGE_MODEL.names))
    for leaf, before, after in zip(shapes, training, generation, strict=True):
        for device in mesh.devices.flat:
            pairs = zip(
                before.devices_indices_map(leaf.shape)[device],
                after.devices_indices_map(leaf.shape)[device],
                leaf.shape,
                strict=True,
            )
            for small, large, size in pairs:
                (start, stop, _), (from_, to, _) = small.indices(size), large.indices(size)
                assert from_ <= start and stop <= to
