"""What contradicts itself in a run that learns from rows with their responses is named, and what does not passes."""

import pytest
from good_config import config, problems

from jaxflow.checks import check

POOL = "cluster__pools__main__roles"
ALONE = {
    "rollout__samples_per_prompt": 1,
    "actor__minibatch_sequences": 96,
    "reward__minibatch_sequences": 96,
    "cost__minibatch_sequences": 96,
}
STAGES = {
    "sft": ["actor", "reward"],
    "reward_model": ["reward"],
    "cost_model": ["cost"],
    "dpo": ["actor", "reference"],
    "kto": ["actor", "reference"],
}
POLICIES = ("sft", "dpo", "kto")


def stage(name, **changes):
    return config(**{"algorithm__name": name, POOL: STAGES[name], **ALONE, **changes})


def said(name, **changes):
    return "\n".join(problems(stage(name, **changes)))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_without_contradictions_passes(name):
    check(stage(name), 100, 8)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rollout__samples_per_prompt": 2}, "no response is sampled to learn from"),
        ({"rollout__parts": 2}, "rollout.parts = 2: no step generates"),
        ({"rollout__temperature": 0.7}, "losses are of the policy itself, at temperature 1"),
        (
            {"algorithm__off_policy__bypass": True},
            "has no sampler whose log-probs could stand for the policy's",
        ),
        ({"warm_start__reward_steps": 3}, "no step asks a reward model"),
    ],
)
def test_what_is_of_sampling_is_refused_in_every_stage(name, changes, expected):
    assert expected in said(name, **changes)


@pytest.mark.parametrize("name", ["sft", "reward_model", "cost_model"])
def test_a_warm_start_is_refused_where_nothing_begins_from_it(name):
    assert f"{name} does not begin from a warm start" in said(name, warm_start__steps=5)
    check(stage("dpo", warm_start__steps=5), 100, 8)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lacks_none_of_its_roles_and_has_no_generator(name):
    missing, *rest = STAGES[name]
    assert f"{name} needs a role {missing}" in said(name, **{POOL: [*rest, "estimator"]})
    assert f"{name} generates nothing in its steps" in said(name, **{POOL: [*STAGES[name], "generator"]})


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("dpo", {"algorithm__preference__loss": "hinge"}, "it is one of: sigmoid, ipo"),
        ("dpo", {"algorithm__preference__beta": 0.0}, "algorithm.preference.beta = 0.0: must be above 0"),
        ("dpo", {"algorithm__preference__label_smoothing": 0.5}, "must be in [0, 0.5)"),
        (
            "dpo",
            {"algorithm__preference__loss": "ipo", "algorithm__preference__label_smoothing": 0.1},
            "is of the loss sigmoid, not of ipo",
        ),
        ("dpo", {"algorithm__preference__desirable_weight": 2.0}, "which kto alone learns from"),
        ("kto", {"algorithm__preference__loss": "ipo"}, "kto has a loss of its own"),
        ("kto", {"algorithm__preference__label_smoothing": 0.1}, "kto has a loss of its own"),
        ("kto", {"algorithm__preference__undesirable_weight": 0.0}, "must be above 0"),
        (
            "kto",
            {"data__prompts_per_step": 1, "actor__minibatch_sequences": 1},
            "a step of one response has no other",
        ),
    ],
)
def test_knobs_of_one_preference_loss_are_refused_under_another(name, changes, expected):
    assert expected in said(name, **changes)


@pytest.mark.parametrize(
    ("name", "budget", "expected"),
    [
        # Prompts of 12 and responses of 20, two more where there are pairs: 34, padded 48; of pairs twice that.
        ("dpo", 95, "cannot hold the longest pair: 2 sequences of up to 34 tokens, 96 when padded"),
        (
            "kto",
            47,
            "cannot hold the longest response with its prompt: a sequence of up to 34 tokens, 48 when",
        ),
    ],
)
def test_micro_batches_hold_whole_pairs_and_whole_responses(name, budget, expected):
    for key in ("actor__microbatch_tokens_per_device", "rollout__score_microbatch_tokens_per_device"):
        assert f"{key.replace('__', '.')} = {budget} {expected}" in said(name, **{key: budget})
        check(stage(name, **{key: budget + 1}), 100, 8)
    assert "reward.microbatch_tokens_per_device = 95 cannot hold" in said(
        "reward_model", reward__microbatch_tokens_per_device=95
    )


@pytest.mark.parametrize("name", ["reward_model", "cost_model"])
def test_a_judge_that_is_taught_starts_from_one_place(name, tmp_path):
    weights = {f"{STAGES[name][0]}__weights": str(tmp_path), "actor__weights": str(tmp_path)}
    assert f"{name} starts from one of them; set the other to ''" in said(name, **weights)
