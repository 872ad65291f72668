"""A chunk holds the weights once and writes the cache where it is."""

import dataclasses

import jax
import numpy as np
import tiny

from jaxflow.engine.cache import empty_cache
from jaxflow.engine.compiled import memory_of
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.sharding import generation_layout
from jaxflow.engine.slots import SlotPrograms
from jaxflow.engine.unstacking import Unstacker
from jaxflow.models.transformer import LanguageModel, describe

WIDE = describe(dataclasses.replace(tiny.CONFIG, width=256, mlp_width=512, layers=4), LanguageModel)
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


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_chunk_copies_neither_weights_nor_cache():
    layout = generation_layout(tiny.ONE_DEVICE)
    memory = memory_of(
        SlotPrograms(WIDE, layout, "float32", 8).trace_decode(4, 256, GREEDY).lower().compile()
    )
    cache = nbytes(jax.eval_shape(lambda: empty_cache(WIDE.config, 4, 256, "float32", layout)))
    layers = nbytes(WIDE.shapes["backbone"]["layers"])
    assert memory.aliased >= cache
    assert memory.temporaries < layers / WIDE.config.layers / 2, "less than half of one layer"
    assert memory.arguments < nbytes(WIDE.shapes) + cache + 4096


def test_unstacked_weights_are_the_stacks_layers_and_the_stacks_go_but_for_those_to_keep():
    layout = generation_layout(tiny.mesh_of((1, 1, 4, 2)))
    kept, params = (tiny.weights(tiny.LANGUAGE_MODEL, layout) for _ in range(2))
    expected = jax.device_get(params["backbone"]["layers"])
    own = kept["backbone"]["layers"]["attention"]
    mixed = {**params["backbone"]["layers"], "attention": own}
    stacks = {**params, "backbone": {**params["backbone"], "layers": mixed}}
    weights = Unstacker(tiny.LANGUAGE_MODEL, layout)(stacks, keep=kept)
    for i, layer in enumerate(weights.layers):
        jax.tree.map(lambda one, stack, i=i: np.testing.assert_array_equal(one, stack[i]), layer, expected)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((own, weights)))
    gone = [leaf for name, leaf in mixed.items() if name != "attention"]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(gone))
    up = weights.layers[0]["mlp"]["up"]
    assert up.sharding.is_equivalent_to(layout.sharding(("embed", "mlp")), 2)
