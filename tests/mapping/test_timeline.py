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
    spans = list(timeline(STEP, parts, shared=False))
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
    spans = [span for span in timeline((policy, judges), 2, shared=False) if span.pool == "judges"]
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


def test_pools_on_the_same_cores_take_turns():
    spans = {span.name: span for span in timeline(STEP, 1, shared=True)}
    # 1 and 3 s of scoring side by side: the short one ends after 2, then the other has the cores alone.
    assert (spans["ref"].seconds, spans["values"].seconds) == (2.0, 4.0)
    # So have 2 and 5 s of learning.
    assert (spans["update_critic"].seconds, spans["update_actor"].seconds) == (4.0, 7.0)
    assert max(span.started + span.seconds for span in spans.values()) == 4 + 4 + 7
