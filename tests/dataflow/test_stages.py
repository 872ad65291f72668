"""The scripts of the stages before reinforcement learning: who learns from what, and who is only measured."""

import fakes
import pytest

from jaxflow.dataflow import DATAFLOWS, Dataflow


def calls(name, measured):
    dataflow = DATAFLOWS[name]
    groups, log = fakes.fake_groups([role for role in dataflow.cast if role not in dataflow.optional])
    batch = fakes.FakeFuture("batch", log)
    (returned,) = dataflow.measure(groups, batch) if measured else dataflow(groups, batch)
    assert returned.name == log[-1].name
    return [(call.name, [argument.name for argument in call.arguments]) for call in log]


@pytest.mark.parametrize(
    ("name", "role"), [("sft", "actor"), ("reward_model", "reward"), ("cost_model", "cost")]
)
def test_a_lesson_is_one_call_and_so_is_an_examination(name, role):
    assert calls(name, measured=False) == [(f"{role}.update", ["batch"])]
    assert calls(name, measured=True) == [(f"{role}.measure", ["batch"])]


@pytest.mark.parametrize(("measured", "method"), [(False, "actor.update"), (True, "actor.measure")])
def test_a_policy_prefers_against_its_reference(measured, method):
    assert calls("dpo", measured) == [
        ("reference.log_probs", ["batch"]),
        (method, ["batch", "reference.log_probs"]),
    ]
    assert calls("kto", measured) == [
        ("actor.mismatched", ["batch"]),
        ("actor.log_probs", ["actor.mismatched"]),
        ("reference.log_probs", ["actor.mismatched"]),
        ("actor.reference_points", ["actor.log_probs", "reference.log_probs"]),
        ("reference.log_probs", ["batch"]),
        (method, ["batch", "reference.log_probs", "actor.reference_points"]),
    ]


def test_answers_are_judged_where_a_pool_has_a_judge_that_is_not_taught():
    assert DATAFLOWS["sft"].answers({"actor", "reward"}) and DATAFLOWS["ppo"].answers(DATAFLOWS["ppo"].cast)
    assert not DATAFLOWS["sft"].answers({"actor"})
    assert not DATAFLOWS["reward_model"].answers({"reward"})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batches": "letters"}, "batches = 'letters': it is one of prompts, demonstrations"),
        ({"taught": ("actor",)}, "actor cannot be taught: it must be in the cast and one of reward, cost"),
        ({"taught": ("cost",)}, "cost cannot be taught"),
        ({"optional": ("actor",)}, "actor cannot be optional"),
    ],
)
def test_a_stage_that_contradicts_itself_is_refused(changes, complaint):
    given = {"cast": ("actor", "reward"), "batches": "preferences", "held_out": lambda roles, batch: []}
    with pytest.raises(ValueError, match=complaint):
        Dataflow(lambda roles, batch: [], **{**given, **changes})
