"""The scripts beside PPO's: who is asked what, in which order, and how little they differ from it."""

import dataclasses

import fakes
import pytest

from jaxflow.dataflow import DATAFLOWS, PROMPTS
from jaxflow.dataflow.refill import informative_responses


def played(name, without=()):
    """Run one step with fakes; return the names of the calls, the log and what came back."""
    dataflow = DATAFLOWS[name]
    groups, log = fakes.fake_groups([role for role in dataflow.cast if role not in without])
    returned = dataflow(groups, fakes.FakeFuture("prompts", log))
    return [call.name for call in log], log, [future.name for future in returned]


def given(log, name):
    (call,) = (call for call in log if call.name == name)
    return [argument and argument.name for argument in call.arguments]


@pytest.mark.parametrize("name", DATAFLOWS)
def test_results_are_made_before_they_are_used_and_nothing_is_waited_for(name):
    called, log, returned = played(name)
    made = {"prompts"}
    for call in log:
        assert {argument.name for argument in call.arguments} <= made, call.name
        made.add(call.name)
    assert "result" not in {call.method for call in log}
    assert set(called[-len(returned) :]) == set(returned)
    assert (called[0] == "actor.generate") == (DATAFLOWS[name].batches == PROMPTS)


def test_grpo_is_ppo_without_its_critic():
    called, log, _ = played("grpo")
    assert sorted(called) == sorted(name for name in played("ppo")[0] if not name.startswith("critic."))
    assert given(log, "estimator.experience") == [
        "actor.generate",
        "reward.score",
        "actor.log_probs",
        "reference.log_probs",
    ]


def test_remax_is_one_more_generation_and_no_critic():
    called, log, _ = played("remax")
    ppo = [name for name in played("ppo")[0] if not name.startswith("critic.")]
    more = list(called)
    for name in ppo:
        if name != "estimator.experience":
            more.remove(name)
    assert more == ["actor.generate_greedy", "reward.score", "estimator.experience_over_greedy"]
    scored = [call.arguments[0].name for call in log if call.name == "reward.score"]
    assert scored == ["actor.generate", "actor.generate_greedy"]


def test_safe_rlhf_adds_costs_their_critic_and_pretraining_to_ppo():
    called, log, returned = played("safe_rlhf")
    ppo = played("ppo")[0]
    assert [name for name in called if name in ppo] == [
        "actor.generate",
        "reward.score",
        "critic.values",
        "reference.log_probs",
        "actor.log_probs",
        "estimator.experience",
        "critic.update",
        "actor.update",
        "estimator.statistics",
    ]
    assert [name for name in called if name not in ppo] == [
        "cost.score",
        "cost_critic.values",
        "pretraining.batch",
        "estimator.cost_experience",
        "estimator.constrained",
        "cost_critic.update",
        "estimator.follow_costs",
    ]
    # Each critic learns its own stream; the actor what both say.
    assert given(log, "critic.update") == ["estimator.experience"]
    assert given(log, "cost_critic.update") == ["estimator.cost_experience"]
    assert given(log, "actor.update") == ["estimator.constrained", "pretraining.batch"]
    # The multiplier moves for good when nothing can fail any more.
    assert returned[-1] == "estimator.follow_costs"


@pytest.mark.parametrize("name", ["ppo", "grpo", "remax", "safe_rlhf"])
def test_an_algorithm_plays_without_a_reference(name):
    _, log, _ = played(name, without=DATAFLOWS[name].optional)
    (call,) = (
        call
        for call in log
        if call.role == "estimator" and call.method in ("experience", "experience_over_greedy")
    )
    assert call.arguments[4 if name == "remax" else 3] is None


def test_who_plays_follows_from_the_pools():
    grpo = DATAFLOWS["grpo"]
    assert grpo.playing({"actor", "reward", "estimator"}) == ("actor", "reward", "estimator")
    assert grpo.playing(set(grpo.cast)) == grpo.cast
    # A role that cannot be absent plays, and the checks of the placement ask for its pool.
    assert "reward" in grpo.playing({"actor"})


@dataclasses.dataclass(frozen=True)
class Counting(fakes.FakeRole):
    """An estimator that finds fewer groups wanting each time it is asked."""

    counts: tuple = ()

    def uninformative_groups(self, scores):
        asked = sum(call.method == "uninformative_groups" for call in self.log)
        self._call("uninformative_groups", scores)
        return Answer(self.counts[asked])

    def refilled_rollout(self, rollout, others, scores, their_scores):
        return self._call("refilled_rollout", rollout, others, scores, their_scores)

    def refilled_scores(self, scores, their_scores):
        return self._call("refilled_scores", scores, their_scores)


@dataclasses.dataclass(frozen=True)
class Answer:
    value: int

    def result(self):
        return self.value


@pytest.mark.parametrize(("wanting", "rounds"), [((0,), 0), ((3, 0), 1), ((3, 1), 2), ((3, 3), 2)])
def test_refills_stop_when_no_group_is_wanting_or_the_prompts_run_out(wanting, rounds):
    groups, log = fakes.fake_groups(("actor", "reward"))
    roles = type("Roles", (), groups | {"estimator": Counting("estimator", log, wanting)})()
    drawn = []

    def further():
        for refill in range(2):
            drawn.append(refill)
            yield fakes.FakeFuture(f"more {refill}", log)

    roles.further_prompts = further()
    _, scores = informative_responses(roles, fakes.FakeFuture("prompts", log))
    refills = [call for call in log if call.method == "refilled_rollout"]
    assert len(refills) == rounds
    assert sum(call.method == "generate" for call in log) == 1 + rounds
    assert scores.name == ("estimator.refilled_scores" if rounds else "reward.score")
    # The rollout is refilled by the scores of before: both choose the same groups.
    for call in refills:
        assert call.arguments[2].name in ("reward.score", "estimator.refilled_scores")
