"""The overlap experiment's bound is the schedule's, and its two orders differ in nothing but when calls are made."""

import itertools

import pytest

from experiments import overlap
from experiments.overlap import Node, Plan
from jaxflow.workers.future import PendingCall


def call(pool, role, method, *inputs):
    return PendingCall(pool, role, method, method, inputs, ())


# generate feeds two scorers on either pool, and an update on the first needs both.
STEP = (
    Node("a", "generate", ()),
    Node("b", "values", (0,)),
    Node("a", "log_probs", (0,)),
    Node("a", "update", (1, 2)),
)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([3.0, 2.0, 1.0, 4.0], 3 + 2 + 4),  # waits for the slower scorer
        ([3.0, 1.0, 2.0, 4.0], 3 + 2 + 4),  # the pool itself is what is busy
        ([3.0, 0.0, 2.0, 4.0], 3 + 2 + 4),
    ],
)
def test_the_bound_is_the_longest_chain_of_inputs_and_of_calls_on_one_pool(seconds, expected):
    assert overlap.bound(STEP, seconds) == expected


def test_the_bound_lies_between_the_busiest_pool_and_the_sum_of_calls():
    for seconds in itertools.product([0.5, 1.0, 4.0], repeat=len(STEP)):
        assert overlap.busiest(STEP, seconds) <= overlap.bound(STEP, seconds) <= sum(seconds)


def test_a_part_waits_for_its_own_part_alone_and_a_whole_call_for_all():
    parts = [call("a", "actor", "generate") for _ in range(2)]
    scored = [call("b", "critic", "values", *parts) for _ in range(2)]
    whole = call("b", "estimator", "experience", *parts, *scored)
    nodes = overlap.nodes_of([*parts, *scored, whole])
    assert [node.after for node in nodes] == [(), (), (0,), (1,), (0, 1, 2, 3)]


TWO_PARTS, ONE_PART = Plan("policy", 2), Plan("policy", 1)


@pytest.mark.slow
def test_pools_work_at_the_same_time_only_where_calls_are_not_made_in_turn(tmp_path):
    with overlap.splits(overlap.QUICK, [TWO_PARTS], tmp_path) as made:
        measured = overlap.measure(made, steps=3)
    assert set(measured) == {(TWO_PARTS, True), (TWO_PARTS, False)}
    for (plan, in_turn), steps in measured.items():
        for step in steps:
            stages = [node.stage for node in step.nodes]
            assert stages.count("gen") == plan.parts and stages.count("update_actor") == 1
            assert sum(step.seconds) <= step.wall or not in_turn
        assert any(map(together, steps)) != in_turn
    first, *others = overlap.table({(ONE_PART, True): measured[TWO_PARTS, True], **measured})
    assert (first.parts, first.order, first.speed_up) == (1, "in turn", 1.0)
    assert [row.speed_up * row.wall for row in others] == pytest.approx([first.wall] * len(others))


def together(step):
    """Whether calls of the two pools ever ran at the same time."""
    calls = [spans[0] for spans in step.spans]
    pools = [[span for span in calls if span.pool == pool] for pool in overlap.POOLS]
    return any(
        a.started < b.started + b.seconds and b.started < a.started + a.seconds
        for a, b in itertools.product(*pools)
    )
