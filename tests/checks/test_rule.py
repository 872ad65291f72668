"""What an algorithm needs and the config does not give is named, with the reason and the mend."""

import pytest
from good_config import ROLES, config, problems

from jaxflow.checks import check, warnings

WITHOUT_CRITIC = [role for role in ROLES if role != "critic"]
ALONE = [role for role in WITHOUT_CRITIC if role != "reference"]
SAFE = [*ROLES, "cost", "cost_critic"]
NO_KL = {"algorithm__kl__reward_coefficient": 0.0}


def grpo(**changes):
    return config(**{"algorithm__name": "grpo", "cluster__pools__main__roles": WITHOUT_CRITIC, **changes})


def safe(tmp_path, **changes):
    cost = tmp_path / "cost.py"
    cost.touch()
    given = {
        "algorithm__name": "safe_rlhf",
        "cluster__pools__main__roles": SAFE,
        "cost__function": f"{cost}:compute_score",
    }
    return config(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"algorithm__estimator": "gae"}, "needs a critic, which algorithm.name = 'grpo' does not give it"),
        (
            {"algorithm__estimator": "remax"},
            "needs the scores of greedy responses, which algorithm.name = 'grpo'",
        ),
        ({"algorithm__estimator": "gea"}, "did you mean 'gae'?"),
        ({"algorithm__objective": "gpso"}, "did you mean 'gspo'?"),
        (
            {"rollout__samples_per_prompt": 1},
            "judges a response by the others to its prompt, and there are none",
        ),
        ({"rollout__temperature": 0.0}, "every sample is the greedy response"),
        (
            {
                "algorithm__objective": "gspo",
                "algorithm__gspo__clip_ratio_high": 0.2,
                "algorithm__loss_aggregation": "seq-mean-token-mean",
            },
            "that is the width of PPO's clip of one token",
        ),
        (
            {"algorithm__objective": "gspo"},
            "gspo is a loss of whole responses; set it to seq-mean-token-mean",
        ),
        ({"algorithm__objective": "geo_mean"}, "geo_mean is a loss of whole responses"),
        ({"cluster__pools__main__roles": ALONE}, "need a reference, and no pool has one"),
        ({"algorithm__kl__controller": "adaptive", **NO_KL}, "would stay 0"),
        ({"algorithm__off_policy__level": "word"}, "it is one of: off, token, sequence, geometric"),
        (
            {"algorithm__off_policy__bypass": True, "algorithm__off_policy__level": "token"},
            "its weight would count twice",
        ),
        (
            {
                "algorithm__off_policy__level": "token",
                "algorithm__off_policy__bounds": "mask",
                "algorithm__off_policy__lower": 3.0,
            },
            "no token would count",
        ),
        (
            {"algorithm__off_policy__bypass": True, "algorithm__kl__reward_estimator": "full"},
            "measured in the scoring pass that bypass leaves out",
        ),
        ({"algorithm__clip_cov__covariance_low": 6.0}, "leaves nothing below"),
        ({"algorithm__estimator": "gdpo"}, "needs algorithm.gdpo.components"),
        (
            {"algorithm__estimator": "gdpo", "algorithm__gdpo__components": ["correct"]},
            "'correct' is not key=weight",
        ),
        ({"algorithm__ptx_coefficient": 1.0}, "grpo has no pretraining batch"),
        ({"algorithm__dppo__ratio_bound": 0.5}, "algorithm.dppo.ratio_bound = 0.5: must be at least 1"),
    ],
)
def test_each_unmet_need_of_the_group_family_is_named(changes, expected):
    assert any(expected in problem for problem in problems(grpo(**changes)))


def test_needs_of_one_algorithm_are_not_asked_of_another():
    check(grpo(), 100, 8)
    check(grpo(cluster__pools__main__roles=ALONE, **NO_KL), 100, 8)
    check(grpo(cluster__pools__main__roles=ALONE, algorithm__kl__reward_estimator="full"), 100, 8)
    check(grpo(algorithm__estimator="rloo", algorithm__dynamic_sampling__max_refills=3), 100, 8)
    check(config(rollout__temperature=0.0), 100, 8)
    check(grpo(algorithm__objective="gspo_token", algorithm__loss_aggregation="seq-mean-token-sum"), 100, 8)
    # One sample is enough for rewards to go.
    check(
        grpo(
            algorithm__estimator="reinforce_plus_plus",
            rollout__samples_per_prompt=1,
            actor__minibatch_sequences=96,
        ),
        100,
        8,
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"algorithm__estimator": "grpo"}, "set the name to grpo, or the estimator to one of: gae"),
        ({"algorithm__dynamic_sampling__max_refills": 2}, "ppo never asks for further prompts"),
        ({"cluster__pools__main__roles": WITHOUT_CRITIC}, "ppo needs a role critic, and no pool has it"),
    ],
)
def test_what_ppo_does_not_do_is_said(changes, expected):
    assert any(expected in problem for problem in problems(config(**changes)))


def test_refills_of_groups_of_one_are_refused():
    bad = grpo(
        algorithm__estimator="reinforce_plus_plus",
        algorithm__dynamic_sampling__max_refills=2,
        rollout__samples_per_prompt=1,
        actor__minibatch_sequences=96,
    )
    assert any("a group of one sample always has equal rewards" in problem for problem in problems(bad))


def test_remax_needs_no_group_and_a_temperature():
    remax = {"algorithm__name": "remax", "cluster__pools__main__roles": WITHOUT_CRITIC}
    check(config(**remax, rollout__samples_per_prompt=1, actor__minibatch_sequences=96), 100, 8)
    bad = config(**remax, rollout__temperature=0.0)
    assert any("every sample is the greedy response, so remax" in problem for problem in problems(bad))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cost__function": ""}, "needs costs: set cost.function"),
        ({"cost__function": "/nowhere.py:cost"}, "cost.function: no such file: /nowhere.py"),
        ({"cost__kind": "model"}, "cost.kind = 'model' needs cost.weights"),
        ({"algorithm__lagrange__initial": 9.0}, "is above algorithm.lagrange.maximum"),
        ({"algorithm__ptx_coefficient": 16.0}, "needs the role pretraining in a pool"),
        (
            {"cluster__pools__main__roles": [*SAFE, "pretraining"]},
            "algorithm.ptx_coefficient = 0, but a pool",
        ),
        ({"cluster__pools__main__roles": ROLES}, "safe_rlhf needs a role cost_critic, and no pool has it"),
        (
            {"data__pretraining_files": ["/nowhere.jsonl"]},
            "data.pretraining_files: no such file: /nowhere.jsonl",
        ),
        ({"data__pretraining_files": ["/nowhere.txt"]}, "/nowhere.txt is neither .jsonl nor .parquet"),
        ({"data__pretraining_files": ["/nowhere.jsonl"]}, "are of the role pretraining, and no pool has it"),
        (
            {
                "cluster__pools__main__roles": [*SAFE, "pretraining"],
                "algorithm__ptx_coefficient": 1.0,
                "data__train_files": ["/nowhere.jsonl"],
            },
            "set data.pretraining_files to demonstrations of your own",
        ),
    ],
)
def test_each_unmet_need_of_the_constraint_is_named(tmp_path, changes, expected):
    check(safe(tmp_path), 100, 8)
    assert any(expected in problem for problem in problems(safe(tmp_path, **changes)))


def test_what_is_hardly_meant_is_warned_about_and_runs():
    def said(asked):
        check(asked, 100, 8)
        return warnings(asked)

    assert said(config()) == said(grpo()) == []
    (idle,) = said(grpo(**NO_KL))
    assert "holds a reference that nothing reads" in idle
    (biased,) = said(grpo(algorithm__normalize_by_std=False))
    assert "Dr.GRPO" in biased
    dr_grpo = {"algorithm__normalize_by_std": False, "algorithm__loss_aggregation": "seq-mean-token-sum-norm"}
    assert said(grpo(**dr_grpo)) == []


def test_a_critic_warms_up_where_there_is_one_and_leaves_the_policy_steps():
    check(config(critic__warmup_steps=9), 100, 8)
    assert any("grpo has no critic; set it to 0" in one for one in problems(grpo(critic__warmup_steps=1)))
    assert any("leaves the policy none" in one for one in problems(config(critic__warmup_steps=10)))


def test_several_greedy_answers_to_a_validation_prompt_are_refused():
    check(config(rollout__validation_samples=4, rollout__validation_temperature=0.6), 100, 8)
    bad = config(rollout__validation_samples=4)
    assert any("greedy answers to a prompt are all the same" in one for one in problems(bad))
