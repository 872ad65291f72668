"""A model with adapters: what is trained moves and is saved, what is not stays where it came from."""

import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxflow.algorithms.losses import SupervisedLoss
from jaxflow.engine.adapter_files import AdapterNote, write_note
from jaxflow.engine.merging import merging
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import save_weights
from jaxflow.engine.train import Trainer
from jaxflow.engine.transition import transition
from jaxflow.models.adapters import Adapters, merged
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.types import Demonstrations, UserError
from jaxflow.workers.trained import TrainedModel

ADAPTERS = Adapters(rank=2, alpha=4.0, targets=("query", "output", "gate", "down"), base_dtype="bfloat16")
MODEL = describe(tiny.CONFIG, LanguageModel, ADAPTERS)
EXPERIENCE = tiny.experience(rows=8, length=16)
BATCH = Demonstrations(EXPERIENCE.tokens, EXPERIENCE.lengths, EXPERIENCE.response_mask)
SIZES = (1, 2, 4, 2)


def trained_model(sizes=SIZES):
    layout = training_layout(tiny.mesh_of(sizes), tiny.CONFIG)
    trainer = Trainer(MODEL, layout, tiny.optimizer(), SupervisedLoss(), 1.0, 4096)
    return TrainedModel(trainer, max_skipped_updates=0, seed=0, stream=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Weights saved in float32, and what they are once rounded."""
    directory = tmp_path_factory.mktemp("base")
    params = tiny.weights(tiny.LANGUAGE_MODEL, training_layout(tiny.ONE_DEVICE))
    save_weights(directory, tiny.LANGUAGE_MODEL, params)
    return directory, jax.tree.map(lambda leaf: np.asarray(leaf.astype(jnp.bfloat16)), params)


@pytest.mark.slow
def test_adapters_learn_beside_a_narrow_base_and_resume_bit_by_bit(base, tmp_path):
    directory, rounded = base
    shutil.copytree(directory, tmp_path / "base")
    model = trained_model()
    model.load(tmp_path / "base")
    fresh = jax.device_get(model.params)
    tiny.assert_same_bits(MODEL.frozen(fresh), rounded)
    model.update(BATCH, 8, 2)
    learnt = jax.device_get(model.params)
    tiny.assert_same_bits(MODEL.frozen(learnt), rounded)
    for before, after in zip(
        jax.tree.leaves(MODEL.trained(fresh)), jax.tree.leaves(MODEL.trained(learnt)), strict=True
    ):
        assert (before != after).any()
    model.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "adapters",
        "optimizer",
    ]

    # A run's folder may be moved: its base goes along.
    os.rename(tmp_path, tmp_path.with_name("elsewhere"))
    again = trained_model()
    again.restore(tmp_path.with_name("elsewhere") / "saved")
    tiny.assert_same_bits(jax.device_get(again.params), learnt)
    for one in (model, again):
        one.update(BATCH, 8, 1)
    tiny.assert_same_bits(jax.device_get(again.params), jax.device_get(model.params))

    layout, generation = (
        make(tiny.mesh_of(SIZES), tiny.CONFIG) for make in (training_layout, generation_layout)
    )
    whole = merging(MODEL, layout, "float32")(again.params)
    rollout, _ = transition(whole, generation.weights(MODEL.base.names), "float32", release=True)
    expected = merged(jax.device_get(again.params), ADAPTERS)
    for (path, actual), wanted in zip(
        jax.tree.leaves_with_path(rollout), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(actual, np.asarray(wanted, np.float32), atol=1e-6, err_msg=str(path))


def test_a_base_that_is_gone_or_was_never_named_is_told(tmp_path):
    with pytest.raises(UserError, match="has no adapters"):
        trained_model((1, 1, 1, 1)).restore(tmp_path)
    (tmp_path / "adapters").mkdir()
    write_note(tmp_path / "adapters", AdapterNote(dataclasses.replace(ADAPTERS, alpha=5.0), ""))
    with pytest.raises(UserError, match=r"alpha=5\.0.*the config asks.*alpha=4\.0"):
        trained_model((1, 1, 1, 1)).restore(tmp_path)
    write_note(tmp_path / "adapters", AdapterNote(ADAPTERS, "/nowhere"))
    with pytest.raises(UserError, match="/nowhere"):
        trained_model((1, 1, 1, 1)).restore(tmp_path)
