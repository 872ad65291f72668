"""The roles that learn before reinforcement learning: updates lower what a measure says, and measures move nothing."""

import jax
import numpy as np
import pytest
import tiny
import worlds
from runs import config_of

from jaxflow.algorithms.preference import mismatched
from jaxflow.batch_algebra import derive
from jaxflow.config import pool
from jaxflow.data.supervised_batches import held_out_batch
from jaxflow.data.tasks import TASKS
from jaxflow.types import TokenLogProbs
from jaxflow.workers.cast import role_class
from jaxflow.workers.place import Place
from jaxflow.workers.roles import Reference

ROWS = 8
TASK = TASKS["addition"]()
PAIRS = TASK.pairs(TASK.train_rows(0)[:ROWS], 0, harm=True)
BATCHES = {
    "sft": held_out_batch([pair.judged[0] for pair in PAIRS]),
    "reward_model": held_out_batch(PAIRS),
    "cost_model": held_out_batch(PAIRS),
    "dpo": held_out_batch(PAIRS),
    "kto": held_out_batch([row for pair in PAIRS[: ROWS // 2] for row in pair.judged]),
}
LEARNERS = {
    "sft": "actor",
    "reward_model": "reward",
    "cost_model": "cost",
    "dpo": "actor",
    "kto": "actor",
}


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


def learner(name, sizes=(1, 1, 1, 1), rows=slice(None)):
    """A role of random weights, the rows of its batch that a process holds, and what an update is told beside them."""
    role, batch = built(name, LEARNERS[name], sizes), tiny.rows_of(BATCHES[name], rows)
    role._trained.create()
    if name not in ("dpo", "kto"):
        return role, batch, ()
    # Near a fresh policy, for which each of some twenty tokens is as likely as any other.
    reference = np.where(batch.response_mask, np.float32(-3.0), np.float32(0.0))
    told = [TokenLogProbs(reference, np.zeros_like(reference))]
    if name == "kto":
        told.append(np.full(len(batch.labels), 0.1, np.float32))
    return role, batch, tuple(told)


def figures(shares):
    """What every learner says of an update on the rows that this process holds."""
    told = {}
    for name in ("sft", "dpo", "reward_model"):
        role, batch, beside = learner(name, (2, 1, 1, 1), slice(*shares[jax.process_index()]))
        told |= {key: np.float32(value) for key, value in role.update(batch, *beside).items()}
    return told


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """Whoever holds the rows: losses and counts are of the whole step. KTO over processes: tests/test_stages.py."""
    expected = figures([(0, ROWS)])
    for told in worlds.run(figures, 2, 1, tmp_path, [(0, ROWS // 2), (ROWS // 2, ROWS)]):
        assert told.keys() == expected.keys()
        for key, value in told.items():
            assert value == pytest.approx(expected[key], rel=1e-3, abs=2e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_measure_moves_nothing_and_is_what_the_update_says_of_the_same_weights(name):
    role, batch, told = learner(name)
    before = jax.device_get(role._trained.params)
    measured = role.measure(batch, *told)
    tiny.assert_same_bits(jax.device_get(role._trained.params), before)
    first = role.update(batch, *told)
    assert {key for key in measured if not key.startswith(f"{name}/")} == set()
    assert measured == pytest.approx({key: first[key] for key in measured}, rel=1e-5, abs=1e-6)
    for _ in range(4):
        role.update(batch, *told)
    learnt = role.measure(batch, *told)
    assert learnt[f"{name}/loss"] < measured[f"{name}/loss"] - 0.01
    assert name == "sft" or learnt[f"{name}/accuracy"] > 0.9


@pytest.mark.slow
def test_the_reference_point_is_the_mean_over_mismatched_rows_and_never_below_zero():
    role, batch, _ = learner("kto")
    rows = mismatched(batch)
    tiny.assert_same_bits(role.mismatched(batch), rows)
    said = role.log_probs(rows)
    away = jax.tree.map(lambda leaf: leaf - np.float32(0.25) * rows.response_mask, said)
    expected = 0.25 * rows.response_mask.sum() / ROWS
    np.testing.assert_allclose(role.reference_points(said, away), np.full(ROWS, expected), rtol=1e-5)
    np.testing.assert_array_equal(role.reference_points(away, said), np.zeros(ROWS, np.float32))
