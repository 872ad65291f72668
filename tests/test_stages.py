"""The stages before reinforcement learning are runs like any other: resumed bit for bit, each the next one's start,
over any number of processes."""

import math

import pytest
from runs import MICRO, StopAfter, flags, rows, run_here, run_to_end

from jaxflow.config import pool

ALONE = {"warm_start.steps": 0, "rollout.samples_per_prompt": 1, "run.total_steps": 4}
STAGES = {
    "sft": (("actor", "reward"), {}),
    "reward_model": (("reward",), {"reward.minibatch_sequences": 8}),
    "cost_model": (("cost",), {"cost.minibatch_sequences": 8, "data.task": "wishes"}),
    "dpo": (("actor", "reference"), {}),
    "kto": (("actor", "reference"), {}),
}
TASKS = {"wishes": {"data.max_prompt_tokens": 8, "rollout.max_response_tokens": 9}}


def stage(name, workdir, stop=None, **changes):
    roles, own = STAGES[name]
    asked = {**ALONE, "algorithm.name": name, **TASKS.get(own.get("data.task"), {}), **own, **changes}
    return run_here(workdir, stop, {"main": pool(roles, 1, 2, data=2)}, **asked)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_was_stopped_goes_on_as_if_never_stopped(tmp_path, name):
    assert stage(name, tmp_path / "whole")[0] == 0
    assert stage(name, tmp_path / "halves", StopAfter(2))[0] == 143
    assert stage(name, tmp_path / "halves")[0] == 0
    assert rows(tmp_path / "halves") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_a_stage_over_two_processes_of_a_command_is_that_of_one(tmp_path):
    """KTO, whose every role is asked, and whose rows go to where others are; each stage: workers/test_learners.py."""
    name, asked = "kto", {"run.total_steps": 2, "data.validation_prompts": 8}
    assert stage(name, tmp_path / "one", **asked)[0] == 0
    roles, own = STAGES[name]
    changes = {**ALONE, "algorithm.name": name, **own, **asked}
    ended = run_to_end(*flags(tmp_path / "two", {"main": pool(roles, 2, 1, data=2)}, **changes))
    assert ended.code == 0, ended.errors
    for found, wanted in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        told = {
            key: value for key, value in found.items() if key.startswith((name, f"val-core/{name}", "actor"))
        }
        assert f"val-core/{name}/loss" in told or f"{name}/loss" in told
        for key, value in told.items():
            assert math.isclose(value, wanted[key], rel_tol=2e-3, abs_tol=2e-5), (key, value, wanted[key])


SAFE = ("actor", "critic", "cost_critic", "reference", "reward", "cost", "estimator")


@pytest.mark.slow
def test_three_stages_lead_from_nothing_to_a_policy_under_a_limit(tmp_path):
    """Each starts from the folder that the one before left; the last asks the second's models of the first's policy."""
    assert stage("sft", tmp_path / "sft", **{"run.total_steps": 30})[0] == 0
    told = rows(tmp_path / "sft")
    assert told[-1]["val-core/sft/loss"] < 0.8 * told[0]["val-core/sft/loss"]
    policy = str(tmp_path / "sft/checkpoints/step_00000030/actor/weights")
    changes = {
        "actor.weights": policy,
        "warm_start.steps": 0,
        "run.total_steps": 2,
        "algorithm.name": "safe_rlhf",
    }
    for name, role in (("reward_model", "reward"), ("cost_model", "cost")):
        lessons = {
            "actor.weights": policy,
            "run.total_steps": 60,
            "data.prompts_per_step": 64,
            "data.task": MICRO["data.task"],
            f"{role}.minibatch_sequences": 64,
            f"{role}.optimizer.learning_rate": 3e-3,
        }
        assert stage(name, tmp_path / role, **lessons)[0] == 0
        told = rows(tmp_path / role)
        assert told[-1][f"val-core/{name}/loss"] < 0.95 * told[0][f"val-core/{name}/loss"]
        weights = str(tmp_path / role / f"checkpoints/step_00000060/{role}/weights")
        changes |= {f"{role}.kind": "model", f"{role}.weights": weights}
    changes |= {"reward.model_score": "number"}
    pools = {"main": pool(SAFE, devices_per_host=2, data=2)}
    assert run_here(tmp_path / "safe_rlhf", pools=pools, **changes)[0] == 0
    last = rows(tmp_path / "safe_rlhf")[-1]
    assert last["critic/score/min"] < 0 or last["critic/score/max"] > 1, (
        "scores are numbers, not probabilities"
    )
    assert last["constraint/cost/mean"] != 0 and last["val-aux/all/cost/mean@1"] != 0
