"""What the controller asks of its workers as a whole, with handles that a test decides about."""

import dataclasses
import itertools

import pytest
from runs import config_of
from tiny import prompts

from jaxflow.batch_algebra import derive
from jaxflow.config import pool
from jaxflow.workers.future import CallList, PendingCall
from jaxflow.workers.launch import Workers, resource_pools
from jaxflow.workers.row_values import byte_count

POOLS = {
    "policy": pool(["actor", "reference"], 2, 1, data=2),
    "judges": pool(["critic", "reward", "estimator"], 1, 1),
}


def workers_of(pools=None, ended=(), parts=1):
    """Workers without processes, whose calls with these record handles have ended."""
    config = config_of(pools, **{"rollout.parts": parts})
    waited = []

    def settle(handles, seconds):
        waited.append(seconds)
        return set(handles) <= set(ended)

    stored = []
    workers = Workers(
        config,
        resource_pools(config, derive(config, 13)),
        transports={},
        calls=CallList(),
        fetch=list,
        settle=settle,
        store=lambda value: stored.append(value) or value,
    )
    return workers, stored, waited


def call(*records):
    return PendingCall("main", "actor", "update", "update_actor", (), records)


@pytest.mark.parametrize(
    ("records", "ended", "expected"),
    [
        ((("a",), ("b",)), "ab", True),
        ((("a", "b"),), "ab", True),
        ((("a", "b"),), "a", False),  # its peer waits for it in a collective
        ((("a",), ("b",)), "a", False),
        ((), "", True),
    ],
)
def test_calls_have_settled_when_every_process_has_ended_them(records, ended, expected):
    workers, _, waited = workers_of(ended=ended)
    for each in records:
        workers.calls.add(call(*each))
    assert workers.settled(5.0) == expected
    assert all(seconds <= 5.0 for seconds in waited)


def test_a_call_that_one_process_ended_alone_is_not_waited_for_to_the_end():
    workers, _, waited = workers_of(ended="a")
    workers.calls.add(call("a", "b"))
    assert not workers.settled(60.0)
    assert sum(waited) <= 2.0


@pytest.mark.parametrize("parts", [1, 2])
def test_every_process_of_every_pool_gets_whole_pieces(parts):
    workers, _, _ = workers_of(POOLS, parts=parts)
    # Two halves for the policy's processes; with two parts, two halves of each part.
    assert workers.cuts(16) == ((8,) if parts == 1 else (4, 8, 12))


def test_what_is_put_into_the_store_is_counted_once_and_cut_where_pools_ask():
    workers, stored, _ = workers_of(POOLS)
    batch = dataclasses.replace(prompts(rows=16), step=3)
    held = workers.put(batch)
    assert [(piece.start, piece.stop) for piece in held.pieces] == [(0, 8), (8, 16)]
    assert workers.traffic.take() == sum(map(byte_count, stored))
    assert all(a.stop == b.start for a, b in itertools.pairwise(held.pieces))
