"""Every large array that dies in a program of the engine gives its memory to a result of its shape, if there is one."""

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.compiled import memory_of
from jaxflow.engine.sharding import training_layout
from jaxflow.engine.state import abstract_arrays, abstract_state
from jaxflow.engine.train import Trainer

LAYOUT = training_layout(tiny.mesh_of((2, 2, 2, 1)), tiny.CONFIG)


def device_bytes(tree):
    """The bytes of one device's shards."""
    return sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.fixture(scope="module")
def programs():
    """An update's two programs, compiled for arrays that do not exist, with what dies in each."""
    trainer = Trainer(
        tiny.LANGUAGE_MODEL, LAYOUT, tiny.optimizer(clip_norm=1.0), tiny.policy_loss(), 1.0, 4096
    )
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=LAYOUT.sharding(("batch", None)[: leaf.ndim])
        ),
        tiny.experience(rows=8),
    )
    accumulate, apply = trainer.trace(batch)
    gradients = abstract_arrays(tiny.LANGUAGE_MODEL.shapes, LAYOUT.weights(tiny.LANGUAGE_MODEL.names))
    state = abstract_state(tiny.LANGUAGE_MODEL, LAYOUT, trainer.transformation)
    return {
        "accumulate": (accumulate.lower().compile(), gradients),
        "apply": (apply.lower().compile(), state),
    }


@pytest.mark.parametrize("name", ["accumulate", "apply"])
def test_an_update_writes_what_dies_where_it_was(programs, name):
    compiled, dying = programs[name]
    memory = memory_of(compiled)
    assert memory.aliased == device_bytes(dying)
    # Beside it there are the report's few numbers, and a pointer to each result.
    assert memory.results - memory.aliased < 8 * len(jax.tree.leaves(dying)) + 128


def test_an_update_s_weights_and_moments_are_chosen_in_no_branch(programs):
    compiled, _ = programs["apply"]
    assert " conditional(" not in compiled.as_text()
