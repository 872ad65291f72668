"""Whole runs of the algorithms beside PPO: they learn from what they are given, and resume as if never stopped."""

import json

import pytest
from runs import StopAfter, rows, run_here

from jaxflow.config import pool

pytestmark = pytest.mark.slow

ROLES = {
    "grpo": ["actor", "reward", "estimator"],
    "remax": ["actor", "reward", "estimator"],  # a KL over the vocabulary asks no role reference
    "safe_rlhf": [
        "actor",
        "critic",
        "cost_critic",
        "reference",
        "reward",
        "cost",
        "estimator",
        "pretraining",
    ],
}
# Rewards that differ even in an untrained policy's answers, in two thirds of the prompts.
JUDGES = """
def reward(data_source, solution_str, ground_truth, extra_info):
    if int(ground_truth) % 3 == 0:
        return 0.0
    return sum(c in "02468" for c in solution_str) / 8

def cost(data_source, solution_str, ground_truth, extra_info):
    return 1.0 - solution_str.count("1")
"""
# From the least to the most.
_SEVERAL = (
    ("aux", "worst@4/mean"),
    ("aux", "worst@2/mean"),
    ("core", "mean@4"),
    ("aux", "best@2/mean"),
    ("core", "best@4/mean"),
)
CHANGES = {
    "grpo": {
        "algorithm.kl.reward_coefficient": 0.0,
        "algorithm.dynamic_sampling.max_refills": 2,
        "algorithm.off_policy.level": "token",
        "algorithm.objective": "clip_cov",
        "algorithm.clip_cov.covariance_low": 0.0,
    },
    "remax": {
        "algorithm.kl.reward_coefficient": 0.01,
        "algorithm.kl.reward_estimator": "full",
        "algorithm.kl.loss_coefficient": 0.01,
        "algorithm.kl.loss_estimator": "full",
    },
    "safe_rlhf": {"algorithm.ptx_coefficient": 0.5, "algorithm.kl.controller": "adaptive"},
}


def settings(tmp_path, name):
    judges = tmp_path / "judges.py"
    if not judges.exists():
        judges.write_text(JUDGES)
    pools = {"main": pool(ROLES[name], devices_per_host=2, data=2)}
    changes = {"algorithm.name": name, "reward.function": f"{judges}:reward", "reward.processes": 1}
    changes |= {"cost.function": f"{judges}:cost", "cost.processes": 1}
    run = {"run.total_steps": 3, "run.evaluate_before": False, "run.evaluate_after": name == "safe_rlhf"}
    return pools, {**changes, **CHANGES[name], **run}


def test_remax_learns_over_the_greedy_response(tmp_path):
    pools, changes = settings(tmp_path, "remax")
    assert run_here(tmp_path / "run", pools=pools, **changes)[0] == 0
    straight = rows(tmp_path / "run")
    assert [row["training/global_step"] for row in straight] == [1, 2, 3]
    for row in straight:
        assert row["actor/grad_norm"] > 0 and "critic/values/mean" not in row
        assert row["critic/advantages/max"] > 0
        # The policy leaves the reference with its first update of a step's two, and is never below it.
        assert row["actor/kl_loss"] > 0
    # Measured, not estimated: 0 at the reference itself, and above it ever after.
    first, *later = (row["actor/reward_kl_penalty"] for row in straight)
    assert abs(first) < 1e-5 and all(kl > 1e-5 for kl in later)


def test_a_critic_warms_up_alone_and_validation_asks_several_times(tmp_path):
    """The policy begins to learn after so many steps, also where the run was stopped before."""
    (tmp_path / "judges.py").write_text(JUDGES)
    changes = {
        "reward.function": f"{tmp_path}/judges.py:reward",
        "reward.processes": 1,
        "critic.warmup_steps": 2,
        "rollout.validation_samples": 4,
        "rollout.validation_temperature": 1.0,
    }
    assert run_here(tmp_path / "straight", **changes)[0] == 0
    assert run_here(tmp_path / "halves", StopAfter(4), **changes)[0] == 143
    assert run_here(tmp_path / "halves", **changes)[0] == 0
    straight = rows(tmp_path / "straight")
    assert rows(tmp_path / "halves") == straight
    before, *steps = straight
    assert ["actor/grad_norm" in row for row in steps] == [False, False, True, True]
    assert all(row["critic/grad_norm"] > 0 for row in steps)
    for row in (before, steps[-1]):
        several = [row[f"val-{kind}/all/reward/{name}"] for kind, name in _SEVERAL]
        assert several == sorted(several) and row["val-aux/all/rows"] == 4 * 16
    samples = (tmp_path / "straight" / "samples.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in samples if json.loads(line)["step"] == 0]
    prompts = [one["prompt"] for one in answers]
    assert all(len(set(prompts[start : start + 4])) == 1 for start in range(0, len(prompts), 4))
    assert any(len({one["response"] for one in answers[s : s + 4]}) > 1 for s in range(0, len(answers), 4))


@pytest.mark.parametrize("name", ["grpo", "safe_rlhf"])
def test_a_stopped_run_goes_on_as_if_it_never_stopped(tmp_path, name):
    pools, changes = settings(tmp_path, name)
    assert run_here(tmp_path / "straight", pools=pools, **changes)[0] == 0
    # Asked after each of the warm start's three steps, then between the steps.
    assert run_here(tmp_path / "halves", StopAfter(4), pools, **changes)[0] == 143
    assert run_here(tmp_path / "halves", pools=pools, **changes)[0] == 0
    straight = rows(tmp_path / "straight")
    assert rows(tmp_path / "halves") == straight
    for row in straight:
        assert row["actor/grad_norm"] > 0 and row["training/staleness_updates/mean"] == 0
    if name == "grpo":
        # Refills leave fewer groups without a lesson than the third of the prompts that have none.
        assert max(row["training/refills"] for row in straight) == 2
        assert sum(row["reward/uninformative_groups"] for row in straight) < 0.2 * len(straight)
        assert all(row["training/token_weights/min"] == 0 for row in straight)
    if name == "safe_rlhf":
        assert len({row["constraint/multiplier"] for row in straight}) == len(straight)
        assert all(row["actor/ptx_loss"] > 0 and row["cost_critic/vf_loss"] > 0 for row in straight)
        assert all(
            0 <= row["constraint/cost/over_threshold"] <= 1 and "cost/errors" in row for row in straight
        )
        assert "val-aux/all/cost/mean@1" in straight[-1]
