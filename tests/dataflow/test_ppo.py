"""PPO's script: who is asked what, in which order, with what."""

import fakes
import pytest

from jaxflow.dataflow import DATAFLOWS


@pytest.fixture
def step():
    ppo = DATAFLOWS["ppo"]
    groups, log = fakes.fake_groups(ppo.cast)
    prompts = fakes.FakeFuture("prompts", log)
    returned = ppo(groups, prompts)
    return returned, log, prompts


def arguments_of(log, name):
    (call,) = (call for call in log if call.name == name)
    return call.arguments


def names(arguments):
    return [argument.name for argument in arguments]


def test_stages_follow_the_paper_generate_prepare_learn(step):
    _, log, _ = step
    called = [call.name for call in log]
    assert called[0] == "actor.generate"
    assert set(called[1:5]) == {"reward.score", "critic.values", "reference.log_probs", "actor.log_probs"}
    assert called[5] == "estimator.experience"
    assert called[6:8] == ["critic.update", "actor.update"]
    assert called[8:] == ["estimator.statistics"]


def test_every_result_is_made_before_it_is_used(step):
    _, log, _ = step
    made = {"prompts"}
    for call in log:
        used = {argument.name for argument in call.arguments if isinstance(argument, fakes.FakeFuture)}
        assert used <= made, call.name
        made.add(call.name)


def test_each_role_is_given_what_its_name_says(step):
    _, log, prompts = step
    assert arguments_of(log, "actor.generate") == (prompts,)
    for name in ("critic.values", "reference.log_probs", "actor.log_probs"):
        assert names(arguments_of(log, name)) == ["actor.generate"]
    rollout, given_prompts = arguments_of(log, "reward.score")
    assert rollout.name == "actor.generate" and given_prompts is prompts
    assert names(arguments_of(log, "estimator.experience")) == [
        "actor.generate",
        "reward.score",
        "actor.log_probs",
        "reference.log_probs",
        "critic.values",
    ]
    for name in ("critic.update", "actor.update"):
        assert names(arguments_of(log, name)) == ["estimator.experience"]
    assert names(arguments_of(log, "estimator.statistics")) == [
        "actor.generate",
        "reward.score",
        "estimator.experience",
    ]


def test_old_log_probs_and_values_are_asked_before_any_update(step):
    called = [call.name for call in step[1]]
    first_update = min(called.index("critic.update"), called.index("actor.update"))
    assert called.index("actor.log_probs") < first_update
    assert called.index("critic.values") < first_update


def test_the_step_s_metrics_come_back_as_futures_and_nothing_was_waited_for(step):
    returned, log, _ = step
    assert sorted(names(returned)) == ["actor.update", "critic.update", "estimator.statistics"]
    assert "result" not in {call.method for call in log}
