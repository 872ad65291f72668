"""The run as a whole, in this process: what it writes, and that going on is the same as never having stopped."""

import json

import pytest
from runs import STEPS, StopAfter, rows, run_here

from jaxflow.controller import Controller
from jaxflow.types import UserError
from jaxflow.workers import reward as reward_role
from jaxflow.workers.protocol import RoleError

# What dashboards of verl's users read, one of each kind.
PROMISED = {
    "actor/pg_loss",
    "actor/pg_clipfrac",
    "actor/ppo_kl",
    "actor/entropy",
    "actor/grad_norm",
    "actor/lr",
    "critic/vf_loss",
    "critic/grad_norm",
    "critic/score/mean",
    "critic/rewards/mean",
    "critic/advantages/mean",
    "response_length/mean",
    "response_length/clip_ratio",
    "prompt_length/mean",
    "timing_s/gen",
    "timing_s/reward",
    "timing_s/old_log_prob",
    "timing_s/ref",
    "timing_s/values",
    "timing_s/adv",
    "timing_s/update_critic",
    "timing_s/update_actor",
    "timing_s/step",
    "perf/throughput",
    "perf/total_num_tokens",
    "perf/time_per_step",
    "training/global_step",
    "training/epoch",
    "training/rollout_probs_diff_mean",
}
ADAPTIVE = {"algorithm.kl.controller": "adaptive", "algorithm.kl.horizon_sequences": 50.0}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("straight")
    code, said = run_here(workdir, **ADAPTIVE)
    assert code == 0
    return workdir, said


def test_a_run_leaves_a_row_per_step_under_the_promised_names(straight):
    workdir, _ = straight
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["training/global_step"] for row in written] == list(range(STEPS + 1))
    for row in written[1:]:
        assert set(row) >= PROMISED
    for row in (written[0], written[-1]):
        assert 0 <= row["val-core/addition/acc/mean@1"] <= 1
    assert written[0]["sft/loss"] > 0
    # One path computes both sides: what is left is the arithmetic of the cache.
    assert all(0 < row["training/rollout_log_probs_diff_mean"] < 1e-4 for row in written[1:])
    assert all(row["training/rollout_log_probs_diff_max"] < 1e-3 for row in written[1:])


@pytest.mark.slow
def test_a_step_that_bypasses_the_scoring_of_its_own_policy_learns_the_same(straight, tmp_path):
    """The sampler's log-probs stand for the policy's: no gap is left between them, and nothing else moves."""
    changes = {"algorithm.off_policy.bypass": True, "run.total_steps": 1, **ADAPTIVE}
    assert run_here(tmp_path, **changes)[0] == 0
    scored, bypassed = rows(straight[0])[1], rows(tmp_path)[1]
    assert bypassed["training/rollout_log_probs_diff_max"] == 0.0
    gaps = {name for name in scored if name.startswith("training/rollout_")}
    for name in scored.keys() - gaps - {name for name in scored if name.startswith("val-")}:
        # Where no reward differs, gradients are what rounding leaves, and Adam's steps are as long as ever.
        near = 1e-2 if name == "actor/ppo_kl" else 2e-3
        assert bypassed[name] == pytest.approx(scored[name], rel=5e-3, abs=near), name


def test_a_run_is_told_in_plain_lines(straight):
    _, said = straight
    assert "\x1b" not in said
    for expected in (
        "first supervised step of the student done",
        "first reinforcement-learning step done",
        "ground truth",
    ):
        assert expected in said
    steps = [line for line in said.splitlines() if line.startswith("step ")]
    assert [line.split(" · ")[0] for line in steps] == [f"step {i}/{STEPS}" for i in range(1, STEPS + 1)]
    assert "checkpoints   step 4" in said


def test_the_reference_stays_and_the_policy_moves(straight):
    written = rows(straight[0])
    assert written[1]["actor/reward_kl_penalty"] == 0
    assert abs(written[-1]["actor/reward_kl_penalty"]) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("asked", [3 + 1, 3 + 3], ids=["before the first step", "between steps"])
def test_a_stopped_run_goes_on_as_if_it_never_stopped(straight, tmp_path, asked):
    code, said = run_here(tmp_path, stop=StopAfter(asked - 1), **ADAPTIVE)
    assert code == 143 and "the same --workdir continues" in said
    assert len(rows(tmp_path)) < STEPS + 1
    assert run_here(tmp_path, **ADAPTIVE)[0] == 0
    assert rows(tmp_path) == rows(straight[0])


@pytest.mark.slow
def test_a_run_stopped_in_the_warm_start_begins_it_again(straight, tmp_path):
    code, said = run_here(tmp_path, stop=StopAfter(1), **ADAPTIVE)
    assert code == 143 and "begins it again" in said
    assert not (tmp_path / "metrics.jsonl").exists()
    run_here(tmp_path, **ADAPTIVE)
    assert rows(tmp_path) == rows(straight[0])


def test_the_adaptive_coefficient_is_state(straight):
    coefficients = [row["actor/reward_kl_penalty_coeff"] for row in rows(straight[0])[1:]]
    assert len(set(coefficients)) == STEPS


@pytest.mark.slow
def test_a_finished_run_continues_to_a_later_end(straight, tmp_path):
    run_here(tmp_path, **{**ADAPTIVE, "run.total_steps": 2, "run.evaluate_after": False})
    run_here(tmp_path, **ADAPTIVE)
    assert rows(tmp_path) == rows(straight[0])


REWARD = """
import pathlib
def compute_score(data_source, solution_str, ground_truth, extra_info):
    calls = pathlib.Path(__file__).with_name("calls")
    count = len(calls.read_text()) if calls.exists() else 0
    calls.write_text("x" * (count + 1))
    if {condition}:
        {failure}
    return len(solution_str) / 8
"""


def reward(tmp_path, condition, failure):
    path = tmp_path / "reward.py"
    path.write_text(REWARD.format(condition=condition, failure=failure))
    # One process, so that the file's count is of rows in their order.
    return {"reward.function": f"{path}:compute_score", "reward.processes": 1, "run.evaluate_before": False}


@pytest.mark.slow
def test_rows_whose_reward_fails_are_counted_and_the_run_goes_on(tmp_path):
    failures = "return [float('nan'), None, 1 / 0][count // 5] if count else exit()"
    changes = reward(tmp_path, "count % 5 == 0", failures)
    assert (
        run_here(tmp_path / "run", **changes, **{"run.total_steps": 1, "run.evaluate_after": False})[0] == 0
    )
    (row,) = rows(tmp_path / "run")
    assert row["reward/failed_rows"] == row["reward/errors"] == 4 and row["critic/score/max"] > 0
    assert row["reward/timeouts"] == row["reward/crashes"] == 0


@pytest.mark.slow
def test_a_reward_that_breaks_stops_the_run_with_its_state_saved(tmp_path):
    changes = reward(tmp_path, "count >= 32", "raise KeyError('gone')") | {"run.evaluate_after": False}
    with pytest.raises(UserError, match=r"failed on 100% of the rows.*KeyError: 'gone' \(prompt"):
        run_here(tmp_path / "run", **changes)
    assert (tmp_path / "run/checkpoints/step_00000002/manifest.json").exists()
    (tmp_path / "reward.py").write_text(REWARD.format(condition="False", failure="pass"))
    assert run_here(tmp_path / "run", **changes)[0] == 0
    assert [row["training/global_step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_reward_that_breaks_in_validation_loses_no_step(tmp_path):
    changes = reward(tmp_path, "count >= 16", "raise KeyError('gone')")
    with pytest.raises(UserError, match="KeyError: 'gone'"):
        run_here(tmp_path / "run", **changes, **{"run.evaluate_every_steps": 1})
    assert (tmp_path / "run/checkpoints/step_00000001/manifest.json").exists()
    assert [row["training/global_step"] for row in rows(tmp_path / "run")] == [1]


def test_an_error_inside_a_role_names_role_method_and_process(tmp_path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("no rows")

    monkeypatch.setattr(reward_role, "score_rows", broken)
    with pytest.raises(
        RoleError,
        match=r"^reward\.judge_validation failed in pool main, process 0 \(pid \d+\): Zero.*: no rows$",
    ):
        run_here(tmp_path)


@pytest.mark.slow
def test_a_refused_save_warns_and_training_goes_on(tmp_path, monkeypatch):
    """A disk that is full for one save: the run ends with all its steps and its last checkpoint."""
    refused = []
    whole = Controller._save

    def once_full(self, done):
        if done == 2:
            refused.append(done)
            raise UserError("disk: could not be written: No space left on device")
        whole(self, done)

    monkeypatch.setattr(Controller, "_save", once_full)
    code, said = run_here(tmp_path, **{"checkpoint.every_steps": 2, "run.evaluate_before": False})
    assert code == 0 and refused == [2]
    assert "warning: no checkpoint of step 2: disk: could not be written" in said
    assert len(rows(tmp_path)) == STEPS and (tmp_path / "checkpoints/step_00000004").is_dir()
