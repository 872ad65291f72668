"""Two processes of two devices do what one process of four does: rows, weights and files."""

import dataclasses
import itertools
import pathlib
import types
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
import worlds

from jaxflow.engine import generate
from jaxflow.engine.generate import UNLIMITED, Allowance, Generator
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import new_state, new_weights, restore_state, save_state
from jaxflow.engine.train import Trainer

pytestmark = pytest.mark.slow  # every program is compiled for two worlds

# (data, fsdp, training tensor size, generation tensor size): rows apart and weights together, weights across the
# processes, and generation's rows across processes that train on the same ones.
# Between them every axis spans both processes, and generation's rows do; whole runs on others are in
# tests/workers/test_placements.py.
MESHES = {"data2_fsdp2": (2, 2, 1, 1), "tensor4_to_1": (1, 1, 4, 1)}
ROWS = 11  # no number of blocks divides it
# Several micro-batches of one or two shapes: compiling is what these tests' time goes into.
TOKENS_PER_DEVICE, SEQUENCES_PER_DEVICE, CHUNK_STEPS = 96, 6, 4
# Looked at before each chunk: two are made, and then one process finds its time over, or all that enough is drawn.
ALLOWANCES = {"rollout_": UNLIMITED, "late_": Allowance(0, 2.5), "spent_": Allowance(ROWS * 2, 0.0)}
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
POLICY = tiny.policy_loss(kl_estimator="k2")
PROMPTS, BATCH = tiny.prompts(ROWS, longest=8), tiny.experience(ROWS)
BATCH = dataclasses.replace(BATCH, lengths=np.maximum(BATCH.lengths, 25))
TRANSFORMATION = tiny.optimizer().transformation()


def sharp(weights):
    """Far from flat, as `tiny.weights`; the head of a fresh scalar model is zero and would hide everything."""
    head = {
        name: 3 * leaf + np.sin(np.arange(leaf.size)).reshape(leaf.shape) / 3
        for name, leaf in weights["head"].items()
    }
    embedding = 20 * weights["backbone"]["embedding"]
    return {"backbone": weights["backbone"] | {"embedding": embedding}, "head": head}


def moved(function, tree, layout, model):
    return jax.jit(function, out_shardings=layout.weights(model.names))(tree)


def weights_of(model, layout):
    return moved(sharp, new_weights(model, layout, 0, 0), layout, model)


def whole(tree, layout, prefix):
    """Name the leaves of a tree as whole arrays on this host."""
    everywhere = jax.jit(lambda t: t, out_shardings=layout.replicated)(tree)
    return {
        prefix + jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(everywhere)
    }


def named(result, prefix):
    return {prefix + name: leaf for name, leaf in vars(result).items() if leaf is not None}


def clock_of_the_last_process():
    """A second passes at every look, but on the last process alone."""
    looks = itertools.count()
    last = jax.process_index() == jax.process_count() - 1
    return types.SimpleNamespace(monotonic=lambda: float(next(looks)) if last else 0.0)


def story(sizes, training_rows, generation_rows, save_to, restore_from):
    """Generate, score, update twice, save, restore: all that this process sees of it."""
    process = jax.process_index()
    mine, generated = np.asarray(training_rows[process]), np.asarray(generation_rows[process])
    mesh = tiny.mesh_of(sizes)
    training, generation = training_layout(mesh), generation_layout(mesh)
    policy, critic = tiny.LANGUAGE_MODEL, tiny.SCALAR_MODEL
    params = weights_of(policy, training)
    batch = tiny.rows_of(BATCH, mine)
    asked = (batch.tokens, batch.lengths, batch.response_mask)

    generator = Generator(policy, generation, "float32", SEQUENCES_PER_DEVICE, CHUNK_STEPS)
    weights = generator.unstacked(moved(lambda tree: tree, params, generation, policy), keep=params)
    prompts, told = tiny.prompt_rows(PROMPTS, generated), {}
    for prefix, allowance in ALLOWANCES.items():
        with mock.patch.object(generate, "time", clock_of_the_last_process()):
            rollout = generator.generate(
                weights, prompts, SAMPLING, 0, 0, 0, policy_updates=0, allowance=allowance
            )
        told |= named(rollout, prefix)

    told |= named(Scorer(policy, training, TOKENS_PER_DEVICE, 0.7).log_probs(params, *asked), "score_")
    scorer = Scorer(critic, training, TOKENS_PER_DEVICE, 1.0)
    told["score_values"] = scorer.values(weights_of(critic, training), *asked)

    trainer = Trainer(policy, training, tiny.optimizer(), POLICY, 1.0, TOKENS_PER_DEVICE)
    state, report = trainer.epochs(new_state(policy, training, TRANSFORMATION, params), batch, 6, 1, seed=3)
    told |= {f"report_{name}": np.float32(value) for name, value in report.items()}
    told |= whole(state, training, "state")
    save_state(pathlib.Path(save_to), policy, state)
    if restore_from is not None:
        restored = restore_state(pathlib.Path(restore_from), policy, training, TRANSFORMATION, {})
        told |= whole(restored, training, "restored")
    return told


def of_prefix(told, prefix):
    return {name.removeprefix(prefix): leaf for name, leaf in told.items() if name.startswith(prefix)}


def assert_rows_of(one, generated, told, prefix):
    """A process has these rows of what one process has of all, in a rollout."""
    for place, row in enumerate(generated):
        length = one[f"{prefix}lengths"][row]
        assert told[f"{prefix}lengths"][place] == length
        for name in ("tokens", "response_mask"):
            expected = one[prefix + name][row, :length]
            np.testing.assert_array_equal(told[prefix + name][place, :length], expected)
        for name in ("rollout_log_probs", "behaviour_log_probs"):
            expected = one[prefix + name][row, :length]
            np.testing.assert_allclose(told[prefix + name][place, :length], expected, atol=1e-5)
    for name in ("finished", "stopped"):
        np.testing.assert_array_equal(told[prefix + name], one[prefix + name][generated])


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_two_processes_do_what_one_does(sizes, tmp_path):
    layout = training_layout(tiny.mesh_of(sizes))
    axes = (layout.axes["batch"], generation_layout(layout.mesh).axes["batch"])
    shares = [[worlds.rows_of_process(p, 2, sizes, over, ROWS) for p in range(2)] for over in axes]
    one = story(sizes, [range(ROWS)], [range(ROWS)], tmp_path / "one", None)
    drawn = one["late_lengths"] - PROMPTS.lengths
    assert one["late_stopped"].any() and (drawn[one["late_stopped"]] == 2 * CHUNK_STEPS).all()
    assert one["spent_stopped"].any() and not one["rollout_stopped"].any()
    both = worlds.run(story, 2, 2, tmp_path, sizes, *shares, str(tmp_path / "two"), str(tmp_path / "one"))

    for process, told in enumerate(both):
        generated, mine = shares[1][process], shares[0][process]
        for prefix in ALLOWANCES:
            assert_rows_of(one, generated, told, prefix)
        for name in ("log_probs", "entropy", "values"):
            np.testing.assert_allclose(told[f"score_{name}"], one[f"score_{name}"][mine], atol=1e-5)
        for name, value in of_prefix(one, "report_").items():
            assert told[f"report_{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert int(told["state.updates"]) == 2 and float(told["report_skipped_updates"]) == 0
        for name, leaf in of_prefix(one, "state").items():
            np.testing.assert_allclose(told[f"state{name}"], leaf, atol=1e-5, err_msg=name)
            np.testing.assert_array_equal(told[f"restored{name}"], leaf, err_msg=name)

    restored = restore_state(tmp_path / "two", tiny.LANGUAGE_MODEL, layout, TRANSFORMATION, {})
    for name, leaf in whole(restored, layout, "state").items():
        np.testing.assert_array_equal(leaf, both[0][name], err_msg=name)
        np.testing.assert_array_equal(both[1][name], both[0][name], err_msg=name)
