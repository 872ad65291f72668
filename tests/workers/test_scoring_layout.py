"""A role scores the same in the generation layout: frozen weights are held in it, others moved there for the pass."""

import jax
import numpy as np
import pytest
import tiny
from runs import config_of
from workers.answers import answered

from jaxflow.batch_algebra import derive
from jaxflow.data.tasks import addition
from jaxflow.engine.mesh import make_mesh
from jaxflow.workers.place import Place
from jaxflow.workers.roles import Actor, Critic, Reference

TASK = addition()
ROWS = TASK.validation_rows(0)[:8]
PROMPTS, ROLLOUT = answered(TASK.tokenizer, ROWS, [row.ground_truth for row in ROWS])
STAGES = {"actor.model.layers": 2}
# data 1 × fsdp 2 × pipe 2 × tensor 2, generation with t_g = 1: eight replicas.
MESH = make_mesh(1, 2, 2, 1, jax.devices()[:8], pipe=2)
STAGED = make_mesh(1, 2, 2, 1, jax.devices()[:8], pipe=2, generation_pipe=2)  # its two stages are kept: four


def told(kind, directory, place):
    """What a role says of the rows, from weights of the directory where it is frozen."""
    config = config_of(**STAGES)
    role = kind(config, derive(config, TASK.tokenizer.vocabulary_size), place)
    if kind is Reference:
        role.load(str(directory))
    else:
        role._trained.create()
        # A fresh head of a critic says zero of everything.
        role._trained._begin(jax.tree.map(lambda w: w + 0.01, role._trained.params), "")
    if kind is Actor and not directory.exists():
        role._trained.save_weights(directory)
    return role.values(ROLLOUT) if kind is Critic else role.log_probs(ROLLOUT).log_probs


@pytest.mark.slow
def test_scoring_in_the_generation_layout_says_the_same(tmp_path):
    for kind, mesh in ((Actor, MESH), (Critic, STAGED), (Reference, STAGED)):
        here, there = (told(kind, tmp_path / "weights", Place(mesh, False, apart)) for apart in (False, True))
        np.testing.assert_allclose(there, here, rtol=2e-5, atol=2e-5)
        assert np.abs(here).max() > 0.1


def test_frozen_weights_are_held_where_they_score():
    config = config_of(**STAGES)
    derived = derive(config, TASK.tokenizer.vocabulary_size)
    for apart in (False, True):
        place = Place(MESH, False, apart)
        layout = place.scoring_layout(derived.actor_model)
        assert layout.replicas == (8 if apart else 2)
        assert Reference(config, derived, place)._layout == layout
    assert Place(tiny.ONE_DEVICE).scoring_layout(derived.actor_model).replicas == 1
