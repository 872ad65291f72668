"""Calls of groups of several processes, on hosts that live in this one: who sees which rows, what comes back."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxflow.placement import MeshSizes
from jaxflow.types import Metrics, TokenLogProbs
from jaxflow.workers import host as host_module
from jaxflow.workers import in_process
from jaxflow.workers.future import CallList, Piece, RowsFuture
from jaxflow.workers.group import Exchange, Traffic, WorkerGroup
from jaxflow.workers.host import Host
from jaxflow.workers.protocol import RoleError, exposed
from jaxflow.workers.resource_pool import ResourcePool
from jaxflow.workers.row_values import byte_count, row_count, take_rows
from jaxflow.workers.transfer import (
    ALL_TO_ALL,
    DP_PROTO,
    ONE_TO_ALL,
    THREE_D_ALL_MICRO_DP,
    THREE_D_PROTO,
    PerProcess,
    cut_at,
)


class Echo:
    """Answers with what it was given, and remembers which rows that were."""

    def __init__(self, config, derived, place):
        self.seen = []

    @exposed("double", THREE_D_ALL_MICRO_DP, by_parts=True)
    def double(self, numbers: np.ndarray) -> np.ndarray:
        self.seen.append(numbers[:, 0].tolist())
        return numbers * 2

    @exposed("pair", THREE_D_PROTO, by_parts=True)
    def pair(self, numbers: np.ndarray, factor: float) -> TokenLogProbs:
        self.seen.append(numbers[:, 0].tolist())
        return TokenLogProbs(numbers * factor, numbers + 1)

    @exposed("total", DP_PROTO, replicated=True)
    def total(self, scores: TokenLogProbs) -> Metrics:
        self.seen.append(scores.entropy[:, 0].tolist())
        return {"rows": float(len(scores.entropy))}

    @exposed("name", ONE_TO_ALL)
    def name(self, word: str) -> str:
        return word

    @exposed("own", ALL_TO_ALL)
    def own(self, word: str) -> str:
        return word

    @exposed("fail", THREE_D_PROTO)
    def fail(self, numbers: np.ndarray) -> np.ndarray:
        raise KeyError("broken")

    @exposed("leak", THREE_D_PROTO)
    def leak(self, numbers: np.ndarray) -> np.ndarray:
        return jax.numpy.asarray(numbers)


class Several:
    """A pool of several processes, each a host here."""

    def __init__(self, pool):
        self.pool, self.grid = pool.name, pool.grid
        self.hosts = [Host(None, None, pool, process) for process in range(pool.hosts)]
        for host in self.hosts:
            one = dataclasses.replace(pool, mesh=MeshSizes(1, 1, 1, 1), hosts=1, devices_per_host=1)
            host._pool = one
            host.use(jax.devices()[:1])
            host._pool = pool
        self.submitted = []

    def place(self, role):
        for host in self.hosts:
            host.place(role)

    def remove(self, role):
        for host in self.hosts:
            host.remove(role)

    def submit(self, process, header, handles):
        self.submitted.append((process, header, handles))
        return in_process.InProcess(self.hosts[process]._pool, self.hosts[process]).submit(
            process, header, handles
        )

    def seen(self):
        return [host._roles["echo"].seen for host in self.hosts]


def pool(name, data, hosts, per_host, tensor=1, micro=1):
    return ResourcePool(name, "cpu", hosts, per_host, MeshSizes(data, 1, tensor, micro), ("echo",), "")


POOLS = {
    "rows over two": pool("a", 2, 2, 1),
    "rows over three": pool("b", 3, 3, 1),
    "peers over two": pool("c", 1, 2, 1, tensor=2),
    "micro over two": pool("d", 1, 2, 1, micro=2),
    "two replicas of two": pool("e", 2, 4, 1, micro=2),
    "one": pool("f", 2, 1, 2),
}


def groups_of(monkeypatch, *pools, parts=1):
    """A group of `Echo` on each pool, exchanging rows as a run's do."""
    monkeypatch.setattr(host_module, "role_class", lambda config, role: Echo)
    transports = [Several(pool) for pool in pools]

    def cuts(rows):
        bounds = [rows * part // parts for part in range(parts + 1)]
        edges = set(bounds)
        for transport in transports:
            for protocol in (THREE_D_PROTO, THREE_D_ALL_MICRO_DP, DP_PROTO):
                for start, stop in [(0, rows), *itertools.pairwise(bounds)]:
                    edges |= {start + e for e in cut_at(protocol.distribute(transport.grid, stop - start))}
        return sorted(edges - {0, rows})

    def put(batch):
        edges = [0, *cuts(row_count(batch)), row_count(batch)]
        pieces = [Piece(a, b, take_rows(batch, a, b)) for a, b in itertools.pairwise(edges)]
        return RowsFuture(tuple(pieces), (), in_process.fetch)

    exchange = Exchange(CallList(), in_process.fetch, put, cuts, parts, Traffic())
    return transports, [WorkerGroup("echo", Echo, transport, exchange) for transport in transports], exchange


NUMBERS = np.arange(48, dtype=np.float32).reshape(24, 2)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("second", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("first", POOLS.values(), ids=POOLS)
def test_rows_go_from_pool_to_pool_whole_and_in_order(monkeypatch, first, second, parts):
    transports, (a, b), _ = groups_of(monkeypatch, first, second, parts=parts)
    doubled = a.double(NUMBERS)
    paired = b.pair(doubled, 0.5)
    result = paired.result()
    assert np.array_equal(result.log_probs, NUMBERS) and np.array_equal(result.entropy, 2 * NUMBERS + 1)
    assert np.array_equal(doubled.result(), 2 * NUMBERS)
    # The first column holds twice the row's number, and four times that where it has been doubled.
    for transport, wanted, unit in (
        (transports[0], THREE_D_ALL_MICRO_DP, 2),
        (transports[1], THREE_D_PROTO, 4),
    ):
        for part in range(parts):
            first_row = part * 24 // parts
            for process, ranges in enumerate(wanted.distribute(transport.grid, 24 // parts)):
                rows = [first_row + row for run in ranges for row in run]
                assert transport.seen()[process][part] == [unit * row for row in rows]


@pytest.mark.parametrize("second", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("first", POOLS.values(), ids=POOLS)
def test_no_process_is_sent_a_piece_with_rows_it_does_not_get(monkeypatch, first, second):
    transports, (a, b), _ = groups_of(monkeypatch, first, second)
    b.pair(a.double(NUMBERS), 1.0)
    for transport in transports:
        for _, header, handles in transport.submitted:
            wanted = sum(len(rows) for rows in header.arguments[0].rows)
            assert sum(map(len, handles)) == wanted


def test_fewer_rows_than_processes_leave_some_with_none_that_still_take_part(monkeypatch):
    transports, (a,), _ = groups_of(monkeypatch, POOLS["rows over three"])
    assert a.double(NUMBERS[:2]).result().tolist() == (2 * NUMBERS[:2]).tolist()
    assert transports[0].seen() == [[[0.0]], [[2.0]], [[]]]


def test_a_replicated_result_is_taken_once_and_values_from_everyone(monkeypatch):
    _, (a,), _ = groups_of(monkeypatch, POOLS["rows over three"])
    assert a.total(a.pair(NUMBERS, 1.0)).result() == {"rows": 8.0}
    assert a.name("x").result() == ("x",) * 3
    assert a.own(PerProcess(("p", "q", "r"))).result() == ("p", "q", "r")


def test_an_exception_is_one_error_with_role_method_and_process(monkeypatch):
    _, (a,), exchange = groups_of(monkeypatch, POOLS["rows over two"])
    failed = a.fail(NUMBERS)
    after = a.pair(failed, 1.0)
    for future in (failed, after):
        with pytest.raises(
            RoleError, match=r"echo\.fail failed in pool a, process 0 \(pid \d+\): KeyError: 'broken'"
        ):
            future.result()
    with pytest.raises(RoleError):
        exchange.calls.collect(in_process.fetch)


def test_only_arrays_and_plain_values_leave_a_process(monkeypatch):
    _, (a,), _ = groups_of(monkeypatch, POOLS["one"])
    with pytest.raises(RoleError, match="may not cross between processes"):
        a.leak(NUMBERS).result()
    with pytest.raises(TypeError, match="may not cross between processes"):
        a.name(object())


def test_batches_of_different_sizes_are_refused(monkeypatch):
    _, (a,), _ = groups_of(monkeypatch, POOLS["one"])
    with pytest.raises(ValueError, match="rows; they must agree"):
        a.pair(a.double(NUMBERS), a.double(NUMBERS[:3]))


def test_tokens_and_bytes_of_a_call_are_those_of_all_its_processes(monkeypatch):
    _, (a,), exchange = groups_of(monkeypatch, POOLS["peers over two"])
    a.pair(NUMBERS, 1.0)
    ((span,),) = exchange.calls.collect(in_process.fetch)
    assert (span.pool, span.role, span.name) == ("c", "echo", "pair")
    # Both peers are given all rows; the first one alone gives the result. Each says that one field is absent.
    assert span.bytes == 2 * NUMBERS.nbytes + 2 * NUMBERS.nbytes + 2 * byte_count(None)


def test_calls_of_a_pool_take_turns_and_wait_for_what_they_are_made_of(monkeypatch):
    _, (a, b), exchange = groups_of(monkeypatch, POOLS["one"], POOLS["rows over two"])
    doubled = a.double(NUMBERS)
    b.pair(doubled, 1.0)
    a.pair(NUMBERS, 1.0)
    first, second, third = exchange.calls.unfinished
    assert exchange.calls.running() == [first]
    first.finished = ()
    assert exchange.calls.running() == [second, third]
