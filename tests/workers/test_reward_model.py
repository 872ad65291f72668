"""A reward model scores a response by the state after its last token, as the verifier was taught to."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from models import numpy_decoder
from runs import config_of
from workers.answers import answered

from jaxflow.batch_algebra import derive
from jaxflow.data.batches import DemonstrationBatches, JudgementBatches, fixed_batch
from jaxflow.data.tasks import addition, reversal
from jaxflow.engine.state import save_weights
from jaxflow.models.transformer import ScalarModel, describe
from jaxflow.types import Rollout
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed_methods
from jaxflow.workers.reward import Reward
from jaxflow.workers.reward_model import RewardModel, Verifier
from jaxflow.workers.roles import Student
from jaxflow.workers.transfer import THREE_D_PROTO

CHANGES = {"reward.kind": "model", "warm_start.reward_steps": 2, "warm_start.reward_learning_rate": 3e-3}
# The model of configs/ppo_tiny.py, and its warm start.
LEARNABLE = {
    "data.task": "reversal",
    "actor.model.width": 64,
    "actor.model.layers": 2,
    "actor.model.heads": 4,
    "actor.model.kv_heads": 4,
    "actor.model.mlp_width": 256,
    "warm_start.sequences_per_step": 128,
    "warm_start.learning_rate": 2e-3,
    "warm_start.reward_learning_rate": 1e-3,
}
TASK = addition()
ROWS = TASK.validation_rows(0)[:6]
PLACE = Place(tiny.ONE_DEVICE)


def setting(task=TASK, **changes):
    """The two arguments that roles share beside their place."""
    config = config_of(**{**CHANGES, **changes})
    return config, derive(config, task.tokenizer.vocabulary_size)


# Half of the answers are right; the second half is one too long, so that rows end at several positions.
PROMPTS, ROLLOUT = answered(
    TASK.tokenizer, ROWS, [row.ground_truth + "1" * (i >= 3) for i, row in enumerate(ROWS)]
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Random weights of a reward model, its head too: (directory, the same on the host, its decoder)."""
    folder, decoder = tmp_path_factory.mktemp("weights"), setting()[1].reward_model
    model = describe(decoder, ScalarModel)
    drawn = jax.device_get(model.create(jax.random.key(0)))
    drawn["head"] = {"weight": np.random.default_rng(0).normal(size=decoder.width).astype(np.float32)}
    save_weights(folder, model, jax.device_put(drawn))
    return folder, drawn, decoder


@pytest.fixture(scope="module")
def reward(saved):
    role = RewardModel(*setting(), PLACE)
    role.load(str(saved[0]))
    return role


def test_a_score_is_the_probability_read_after_the_last_token(reward, saved):
    _, params, decoder = saved
    scores = reward.score(ROLLOUT, PROMPTS).scores
    for tokens, length, score in zip(ROLLOUT.tokens, ROLLOUT.lengths, scores, strict=True):
        hidden = numpy_decoder.hidden_states(params, decoder, tokens[None, :length])
        logit = hidden[0, -1] @ params["head"]["weight"]
        assert score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert scores.dtype == np.float32 and len(set(scores.tolist())) == len(ROWS)


def test_what_lies_behind_the_response_is_never_read(reward):
    padding = np.arange(ROLLOUT.tokens.shape[1]) >= ROLLOUT.lengths[:, None]
    tokens = np.pad(np.where(padding, 3, ROLLOUT.tokens), ((0, 0), (0, 4)), constant_values=5).astype(
        np.int32
    )
    padded = dataclasses.replace(
        ROLLOUT, tokens=tokens, response_mask=np.pad(ROLLOUT.response_mask, ((0, 0), (0, 4)))
    )
    expected = reward.score(ROLLOUT, PROMPTS).scores
    np.testing.assert_allclose(reward.score(padded, PROMPTS).scores, expected, atol=1e-6)


def test_an_empty_response_scores_nothing(reward):
    mask = ROLLOUT.response_mask.copy()
    mask[2] = False
    scores = reward.score(dataclasses.replace(ROLLOUT, response_mask=mask), PROMPTS).scores
    assert scores[2] == 0 and (np.delete(scores, 2) > 0).all()


def test_accuracy_and_failures_stay_the_functions(reward):
    told = Reward(*setting(), PLACE).score(ROLLOUT, PROMPTS)
    found = reward.score(ROLLOUT, PROMPTS)
    np.testing.assert_array_equal(found.accuracy, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.accuracy, told.accuracy)
    np.testing.assert_array_equal(found.failed, told.failed)


def test_validation_shows_the_models_scores_beside_the_functions_accuracy(reward):
    scores = reward.score(ROLLOUT, PROMPTS)
    samples = reward.judge_validation(ROLLOUT, PROMPTS)
    assert [sample.score for sample in samples] == scores.scores.tolist()
    assert [sample.accuracy for sample in samples] == scores.accuracy.tolist()
    assert [sample.prompt for sample in samples] == [row.prompt for row in ROWS]


def test_rows_reach_a_model_as_a_models_and_a_function_as_a_functions():
    for method in ("score", "judge_validation"):
        assert exposed_methods(RewardModel)[method].protocol is THREE_D_PROTO
        assert exposed_methods(Reward)[method].protocol is not THREE_D_PROTO


def judged(reward, rows, judgements):
    """The scores of judgements about some of these rows."""
    by_tokens = {row.tokens: row for row in rows}
    starts = judgements.response_mask.argmax(axis=1)
    asked = [by_tokens[tuple(t[:start])] for t, start in zip(judgements.tokens.tolist(), starts, strict=True)]
    count, zeros = len(asked), np.zeros(judgements.tokens.shape, np.float32)
    rollout = Rollout(
        judgements.tokens,
        judgements.lengths,
        judgements.response_mask,
        zeros,
        zeros,
        np.ones(count, bool),
        np.arange(count, dtype=np.int32),
        np.zeros(count, np.int32),
        np.zeros(count, bool),
    )
    return reward.score(rollout, fixed_batch(asked, 1, 1, step=0)).scores


@pytest.mark.slow
def test_what_a_verifier_learns_its_reward_model_says(tmp_path):
    verifier, reward = Verifier(*setting(), PLACE), RewardModel(*setting(), PLACE)
    verifier.create()
    batch = JudgementBatches(ROWS, TASK.solution, TASK.tokenizer, 8, seed=0).at(0)
    told = [verifier.learn(batch) for _ in range(40)]
    assert told[0]["verifier/loss"] == pytest.approx(np.log(2), rel=1e-5)  # the head starts at zero
    assert told[-1]["verifier/loss"] < 0.3 and told[-1]["verifier/accuracy"] == 1
    verifier.save_weights(str(tmp_path))
    reward.load(str(tmp_path))
    np.testing.assert_array_equal(judged(reward, ROWS, batch) > 0.5, batch.labels == 1)


@pytest.mark.slow
def test_every_mesh_learns_what_one_device_does():
    batches, told = JudgementBatches(ROWS, TASK.solution, TASK.tokenizer, 8, seed=0), []
    for place in (PLACE, Place(tiny.mesh_of((2, 2, 2, 2)))):
        verifier = Verifier(*setting(), place)
        verifier.create()
        told.append([verifier.learn(batches.at(step)) for step in range(3)])
    for one, other in zip(*told, strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=1e-4)


@pytest.mark.slow
def test_a_verifier_that_starts_from_the_policy_tells_nine_of_ten_held_out_answers(tmp_path):
    task = reversal()
    given = setting(task, **LEARNABLE)
    student, verifier, reward = (role(*given, PLACE) for role in (Student, Verifier, RewardModel))
    lesson = (task.train_rows(0), task.solution, task.tokenizer, 128, 0)
    demonstrations, judgements = DemonstrationBatches(*lesson), JudgementBatches(*lesson)
    student.create()
    for step in range(60):
        student.imitate(demonstrations.at(step))
    student.save_weights(str(tmp_path / "student"))
    verifier.load_backbone(str(tmp_path / "student"))
    for step in range(500):
        verifier.learn(judgements.at(step))
    verifier.save_weights(str(tmp_path / "verifier"))
    reward.load(str(tmp_path / "verifier"))
    rows = task.validation_rows(0)
    held_out = JudgementBatches(rows, task.solution, task.tokenizer, 1024, seed=0).at(0)
    assert np.mean((judged(reward, rows, held_out) > 0.5) == (held_out.labels == 1)) > 0.9
