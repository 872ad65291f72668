"""Steps as schedules: what waits for what, and how pools on the same cores slow each other down."""

import itertools

import pytest
from good_config import split_config

from jaxflow.dataflow import DATAFLOWS
from jaxflow.mapping.asked import SCORING_ORDER
from jaxflow.mapping.cost import Seconds
from jaxflow.mapping.plan import PlannedCall, PlannedPool
from jaxflow.mapping.timeline import timeline


def pool(name: str, *calls: PlannedCall) -> PlannedPool:
    mesh = split_config().cluster.pools["main"].mesh
    return PlannedPool(name, (), "h100", 80e9, 72e9, 1, 1, mesh, (), (), (), (), calls, 0)


def call(stage: str, part: int, seconds: float) -> PlannedCall:
    return PlannedCall("role", stage, part, Seconds(compute=seconds))


# generate 4, score 1, learn 5 | score 3, learn 2
STEP = (
    pool("policy", call("gen", 0, 4.0), call("ref", 1, 1.0), call("update_actor", 2, 5.0)),
    pool("judges", call("values", 1, 3.0), call("update_critic", 2, 2.0)),
)


@pytest.mark.parametrize(
    ("parts", "learning", "end"),
    [
        (1, 4 + 3, 7 + 5),
        (2, 4 + 1.5, 5.5 + 5),  # the judges score the first half from 2 on, the second from 4 on
        (4, 4 + 1, 5 + 5),  # the policy's own pass is now the last
    ],
)
def test_parts_are_scored_while_others_are_generated(parts, learning, end):
    spans = list(timeline(STEP, parts, cores={}))
    assert min(span.started for span in spans if span.name.startswith("update")) == learning
    assert max(span.started + span.seconds for span in spans) == end
    assert sum(span.seconds for span in spans if span.name == "values") == pytest.approx(3.0)
    for name in ("policy", "judges"):
        mine = sorted((span.started, span.started + span.seconds) for span in spans if span.pool == name)
        assert all(before[1] <= after[0] + 1e-9 for before, after in itertools.pairwise(mine))


def test_a_pool_makes_every_part_of_a_call_before_its_next_call():
    """As a run does: a call's parts are handed over at once, and a pool takes what it is given in order."""
    policy, judges = (
        pool("policy", call("gen", 0, 4.0)),
        pool("judges", call("reward", 1, 2.0), call("ref", 1, 2.0)),
    )
    spans = [span for span in timeline((policy, judges), 2, cores={}) if span.pool == "judges"]
    # A first half from 2 on, the second from 4 on, and only then the other role: 7, where part by part ended at 6.
    assert [(span.name, span.started) for span in spans] == [
        ("reward", 2.0),
        ("reward", 4.0),
        ("ref", 5.0),
        ("ref", 6.0),
    ]


@pytest.mark.parametrize("name", ["ppo", "remax", "grpo", "safe_rlhf"])
def test_scores_are_asked_for_in_the_order_that_plans_assume(name):
    asked = []

    class Recorder:
        def __init__(self, role):
            self.role = role

        def __getattr__(self, method):
            return lambda *_: asked.append((self.role, method))

    DATAFLOWS[name]({role: Recorder(role) for role in DATAFLOWS[name].cast}, None)
    scored = [role for role, method in asked if method in ("score", "values", "log_probs")]
    assert scored == sorted(scored, key=SCORING_ORDER.index)
    assert set(scored) == set(SCORING_ORDER) & set(DATAFLOWS[name].cast)


@pytest.mark.parametrize("policy", [{0}, {0, 1}])
def test_pools_on_the_same_core_take_turns_and_wait_for_their_slowest(policy):
    spans = {span.name: span for span in timeline(STEP, 1, {"policy": policy, "judges": {0}})}
    # 1 and 3 s of scoring side by side: the short one ends after 2, then the other has the cores alone.
    assert (spans["ref"].seconds, spans["values"].seconds) == (2.0, 4.0)
    # So have 2 and 5 s of learning.
    assert (spans["update_critic"].seconds, spans["update_actor"].seconds) == (4.0, 7.0)
    assert max(span.started + span.seconds for span in spans.values()) == 4 + 4 + 7


def test_pools_on_cores_of_their_own_slow_nobody_down():
    apart = list(timeline(STEP, 1, {"policy": {0}, "judges": {1}}))
    assert apart == list(timeline(STEP, 1, {}))


def test_who_waits_leaves_the_core_to_others():
    waiting = PlannedCall("role", "update_actor", 2, Seconds(compute=1.0, idle=3.0))
    steps = (pool("policy", waiting), pool("judges", call("update_critic", 2, 2.0)))
    spans = {span.name: span for span in timeline(steps, 1, {"policy": {0}, "judges": {0}})}
    # A quarter of the one's time is work: the other takes 1 + 1/4 as long, and it itself 3/4 + 1/4 · 2.
    assert spans["update_critic"].seconds == pytest.approx(2.0 * 1.25)
    assert spans["update_actor"].seconds == pytest.approx(2.5 + 4.0 - 2.5 / 1.25)
