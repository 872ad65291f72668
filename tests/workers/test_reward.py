"""The reward role: scores with their penalty, and what a step's figures are made of."""

import dataclasses

import numpy as np
import pytest
import tiny
from runs import config_of
from workers.answers import answered

from jaxflow.batch_algebra import derive
from jaxflow.data.tasks import addition
from jaxflow.tracking.metrics import judge_metrics
from jaxflow.types import RewardFigures, UserError
from jaxflow.workers.place import Place
from jaxflow.workers.reward import Reward

TASK = addition()
ROWS = TASK.validation_rows(0)[:4]
# The end token behind each counts: 2, 4, 5 and 6 tokens.
PROMPTS, ROLLOUT = answered(TASK.tokenizer, ROWS, ["1", "123", "1234", "12345"])
FUNCTION = """
import os
def compute_score(solution_str, scale=1, **row):
    if solution_str == "1234":
        os._exit(1)
    told = {"score": scale, "acc": 0.5, "characters": len(solution_str)}
    return told | {"long": 1} if len(solution_str) > 4 else told
"""


def role(tmp_path, text=FUNCTION, **changes):
    (tmp_path / "reward.py").write_text(text)
    own = {
        "reward.function": f"{tmp_path}/reward.py:compute_score",
        "reward.fallback_score": -3.0,
        "reward.processes": 1,
        "rollout.max_response_tokens": 6,
    }
    config = config_of(**{**own, **changes})
    return Reward(config, derive(config, TASK.tokenizer.vocabulary_size), Place(tiny.ONE_DEVICE))


DAPO = {
    "reward.manager": "dapo",
    "reward.overlong_buffer_tokens": 4,
    "reward.overlong_penalty_factor": 2.0,
    "reward.function_arguments": '{"scale": 10}',
}


def test_long_answers_are_punished_in_training_and_a_failed_row_has_its_fallback_alone(tmp_path):
    reward = role(tmp_path, **DAPO)
    scores = reward.score(ROLLOUT, PROMPTS)
    assert scores.scores.tolist() == [10.0, 9.0, -3.0, 8.0] and scores.scores.dtype == np.float32
    assert scores.accuracy.tolist() == [0.5, 0.5, 0.0, 0.5]
    assert scores.failed.tolist() == [False, False, True, False]
    samples = reward.judge_validation(ROLLOUT, PROMPTS)
    assert [sample.score for sample in samples] == [10.0, 10.0, -3.0, 10.0]


def test_a_step_s_figures_are_of_all_its_parts_and_taken_once(tmp_path):
    reward = role(tmp_path, **DAPO)
    reward.score(ROLLOUT, PROMPTS)
    reward.judge_validation(ROLLOUT, PROMPTS)  # no part of a step
    reward.score(ROLLOUT, PROMPTS)
    figures = reward.take_figures()
    assert figures.crashes == 2 and figures.errors == figures.timeouts == 0
    assert figures.sums == {"characters": 18.0, "long": 2.0, "overlong_penalty": -6.0}
    assert figures.counts == {"characters": 6, "long": 2, "overlong_penalty": 8}
    assert reward.take_figures() == RewardFigures(0, 0, 0, {}, {})


def test_figures_of_processes_are_one_mean_over_the_rows_that_told_a_number():
    parts = [
        RewardFigures(1, 2, 3, {"a": 4.0, "b": 1.0}, {"a": 3, "b": 1}),
        RewardFigures(1, 2, 3, {"a": 2.0}, {"a": 1}),
    ]
    assert judge_metrics("reward", parts) == {
        "reward/errors": 1.0,
        "reward/timeouts": 2.0,
        "reward/crashes": 3.0,
        "reward/a/mean": 1.5,
        "reward/b/mean": 1.0,
    }


def test_a_function_that_fails_too_often_stops_the_run(tmp_path):
    reward = role(tmp_path, "def compute_score(**row): return None", **{"reward.max_failed_fraction": 0.9})
    with pytest.raises(UserError, match=r"failed on 100% of the rows.*NoneType, not a number \(prompt"):
        reward.score(ROLLOUT, PROMPTS)


def test_a_batch_function_sees_all_rows_of_a_call(tmp_path):
    text = "def compute_score(solution_strs, **rows): return [len(solution_strs)] * len(solution_strs)"
    scores = role(tmp_path, text, **{"reward.manager": "batch"}).score(ROLLOUT, PROMPTS)
    assert scores.scores.tolist() == [4.0] * 4


def test_without_a_function_a_task_s_answers_are_exact(tmp_path):
    right = [ROWS[0].ground_truth, "7", ROWS[2].ground_truth, ""]
    prompts, rollout = answered(TASK.tokenizer, ROWS, right)
    reward = role(tmp_path, **{"reward.function": ""})
    assert reward.score(rollout, prompts).scores.tolist() == [1.0, 0.0, 1.0, 0.0]
    elsewhere = dataclasses.replace(
        prompts, rows=tuple(dataclasses.replace(r, data_source="aime") for r in ROWS)
    )
    assert reward.score(rollout, elsewhere).scores.tolist() == [1.0, 0.0, 1.0, 0.0]
