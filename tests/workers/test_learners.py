"""The roles that learn before reinforcement learning: updates lower what a measure says, and measures move nothing."""

import functools

import jax
import numpy as np
import pytest
import tiny
from runs import config_of

from jaxflow.algorithms.preference import mismatched
from jaxflow.batch_algebra import derive
from jaxflow.config import pool
from jaxflow.data.supervised_batches import held_out_batch
from jaxflow.data.tasks import TASKS
from jaxflow.workers.cast import role_class
from jaxflow.workers.place import Place
from jaxflow.workers.roles import Reference

ROWS = 8
TASK = TASKS["addition"]()
PAIRS = TASK.pairs(TASK.train_rows(0)[:ROWS], 0, harm=True)
BATCHES = {
    "reward_model": held_out_batch(PAIRS),
    "cost_model": held_out_batch(PAIRS),
    "dpo": held_out_batch(PAIRS),
    "kto": held_out_batch([row for pair in PAIRS[: ROWS // 2] for row in pair.judged]),
}
LEARNERS = {"reward_model": "reward", "cost_model": "cost", "dpo": "actor", "kto": "actor"}


def built(name, role, sizes=(1, 1, 1, 1)):
    """A role as a run of this stage would build it, on a mesh of this process."""
    roles = (LEARNERS[name], *(("reference",) if LEARNERS[name] == "actor" else ()))
    rates = {f"{taught}.optimizer.learning_rate": 3e-3 for taught in ("actor", "reward", "cost")}
    sizes_of_steps = {f"{taught}.minibatch_sequences": ROWS for taught in ("actor", "reward", "cost")}
    alone = {"rollout.samples_per_prompt": 1, "warm_start.steps": 0, "data.prompts_per_step": ROWS}
    config = config_of(
        {"main": pool(roles, devices_per_host=2, data=2)},
        **{"algorithm.name": name, **alone, **rates, **sizes_of_steps},
    )
    derived = derive(config, TASK.tokenizer.vocabulary_size)
    kind = role_class(config, role) if role != "reference" else Reference
    return kind(config, derived, Place(tiny.mesh_of(sizes)))


@functools.cache
def learner(name):
    role = built(name, LEARNERS[name])
    if LEARNERS[name] != "actor":
        role.create()
        return role, ()
    role._trained.create()
    batch = BATCHES[name]
    # Against itself: the reference is where the policy begins.
    told = [role.log_probs(batch)]
    if name == "kto":
        moved = role.log_probs(role.mismatched(batch))
        told.append(role.reference_points(moved, moved))
    return role, tuple(told)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_measure_moves_nothing_and_is_what_the_update_says_of_the_same_weights(name):
    role, told = learner(name)
    prefix = {"dpo": "dpo", "kto": "kto"}.get(name, name)
    before = jax.device_get(role._trained.params)
    measured = role.measure(BATCHES[name], *told)
    tiny.assert_same_bits(jax.device_get(role._trained.params), before)
    first = role.update(BATCHES[name], *told)
    assert {key for key in measured if not key.startswith(f"{prefix}/")} == set()
    assert measured == pytest.approx({key: first[key] for key in measured}, rel=1e-5, abs=1e-6)
    for _ in range(4):
        role.update(BATCHES[name], *told)
    learnt = role.measure(BATCHES[name], *told)
    assert learnt[f"{prefix}/loss"] < measured[f"{prefix}/loss"] - 0.01
    assert learnt[f"{prefix}/accuracy"] > 0.9


@pytest.mark.slow
def test_the_reference_point_is_the_mean_over_mismatched_rows_and_never_below_zero():
    role, _ = learner("kto")
    batch = BATCHES["kto"]
    rows = mismatched(batch)
    tiny.assert_same_bits(role.mismatched(batch), rows)
    said = role.log_probs(rows)
    away = jax.tree.map(lambda leaf: leaf - np.float32(0.25) * rows.response_mask, said)
    expected = 0.25 * rows.response_mask.sum() / ROWS
    np.testing.assert_allclose(role.reference_points(said, away), np.full(ROWS, expected), rtol=1e-5)
    np.testing.assert_array_equal(role.reference_points(away, said), np.zeros(ROWS, np.float32))
