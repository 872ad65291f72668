"""Processes that join one world: plain ones, without Ray."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest
from runs import environment

from jaxflow.types import UserError
from jaxflow.workers.world import World, free_port, join

LOOPBACK = "0100007F"  # 127.0.0.1 as the kernel prints it, also inside an IPv6 address
COLLECTIVE_SECONDS = 3

# Reports what it sees after one collective of all; process 0 then enters another, to which nobody comes.
PROCESS = """
import json, os, sys, time
import jax, numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxflow.workers.world import World, join

said = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # gloo prints too
values = json.loads(sys.argv[1])
world = World(**values | {"cores": tuple(values["cores"])})
devices = join(world)
mesh = Mesh(numpy.array(devices), ("all",))
rows = NamedSharding(mesh, PartitionSpec("all"))
data = numpy.arange(1.0, 1 + len(devices), dtype=numpy.float32)
data = jax.make_array_from_callback(data.shape, rows, lambda index: data[index])
total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec())).lower(data).compile()
print("ready", file=said)
sys.stdin.readline()
report = {
    "sum": float(total(data)),
    "owners": [device.process_index for device in devices],
    "affinities": [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")],
}
print(json.dumps(report), file=said)
sys.stdin.readline()
started = time.monotonic()
if world.process_index == 0:
    try:
        total(data).block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        print(json.dumps({"error": str(error), "seconds": time.monotonic() - started}), file=said)
sys.stdin.readline()
"""


@pytest.fixture(scope="module", autouse=True)
def devices():
    """The session's eight: what joins in this process must not be the first to ask."""
    return jax.devices()


def world_of(**changes):
    world = World(
        pool="main",
        platform="cpu",
        processes=2,
        process_index=0,
        devices_per_process=2,
        coordinator=f"127.0.0.1:{free_port()}",
        loopback=True,
        start_timeout_seconds=60.0,
        heartbeat_timeout_seconds=60.0,
        collective_timeout_seconds=COLLECTIVE_SECONDS,
        compilation_cache="",
        cores=(),
    )
    return dataclasses.replace(world, **changes)


def listening(process):
    """The addresses in /proc/net on which a process listens."""
    sockets = set()
    for link in pathlib.Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sockets.add(os.readlink(link))
    table = "".join(pathlib.Path("/proc/net", kind).read_text() for kind in ("tcp", "tcp6"))
    lines = [line.split() for line in table.splitlines()]
    return [line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture(scope="module")
def worlds():
    """One per process; each owns a core of its own where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    first = world_of(cores=(cores[0],))
    return first, dataclasses.replace(first, process_index=1, cores=(cores[-1],))


@pytest.fixture(scope="module")
def processes(worlds):
    """Two processes of one world, at their first collective."""
    with contextlib.ExitStack() as stack:
        started = []
        for world in worlds:
            command = [sys.executable, "-c", PROCESS, json.dumps(dataclasses.asdict(world))]
            process = subprocess.Popen(
                command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            go_on(process)
        yield started


@pytest.fixture(scope="module")
def reports(processes):
    return [json.loads(process.stdout.readline()) for process in processes]


def test_a_sum_over_two_processes_is_the_sum_of_all_their_rows(reports):
    assert [report["sum"] for report in reports] == [1.0 + 2.0 + 3.0 + 4.0] * 2


def test_every_process_sees_the_devices_in_mesh_order(reports):
    assert [report["owners"] for report in reports] == [[0, 0, 1, 1]] * 2


def test_no_thread_of_a_process_runs_on_another_pools_cores(reports, worlds):
    for report, world in zip(reports, worlds, strict=True):
        assert all(tuple(cores) == world.cores for cores in report["affinities"])


def test_coordinator_and_collectives_listen_on_loopback_alone(reports, processes):
    for process in processes:
        addresses = listening(process.pid)
        assert addresses, "the collectives of each process listen somewhere"
        assert all(address.endswith(LOOPBACK) for address in addresses)


@pytest.mark.slow
def test_a_collective_without_its_peer_raises_in_time(reports, processes):
    go_on(processes[0])
    outcome = json.loads(processes[0].stdout.readline())
    # On a machine with much else to do, gloo may give the connection up before it has waited so long.
    told = (f"Timed out waiting {1000 * COLLECTIVE_SECONDS}ms", "Connection closed by peer")
    assert any(message in outcome["error"] for message in told)
    assert outcome["seconds"] < 60  # and not the half hour that XLA gives by itself


def failure(world):
    with pytest.raises(UserError) as caught:
        join(world)
    return str(caught.value)


def test_all_who_came_learn_in_time_that_one_did_not():
    zero = world_of(processes=3, start_timeout_seconds=3.0)
    one = dataclasses.replace(zero, process_index=1)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        messages = list(threads.map(failure, (zero, one), timeout=120))
    assert "no process [2] in 3 s" in messages[0]
    assert "process 0 did not gather" in messages[1]


def test_a_stranger_at_the_coordinators_port_stands_for_nobody():
    world = world_of(start_timeout_seconds=3.0)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        message = threads.submit(failure, world)
        with socket.create_connection(connected(world)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert "no process [1]" in message.result(timeout=120)


def connected(world):
    """The coordinator's address, once somebody listens there."""
    host, port = world.coordinator.split(":")
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, port)):
            return host, port


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port} cannot listen" in failure(world_of(coordinator=f"127.0.0.1:{port}"))


@pytest.mark.parametrize("coordinator", ["192.0.2.1:4711", "no-such-host.invalid:4711"])
def test_a_coordinator_beyond_loopback_is_refused_unless_told(coordinator):
    assert coordinator in failure(world_of(coordinator=coordinator))


def test_one_process_takes_the_first_of_the_devices_that_are_there(devices):
    assert join(world_of(processes=1)) == devices[:2]


def test_too_few_devices_are_counted():
    message = failure(world_of(processes=1, devices_per_process=9))
    assert "main needs 9 cpu devices in process 0, found 8" in message


def test_cores_that_are_not_there_are_named():
    absent = max(os.sched_getaffinity(0)) + 1
    assert f"cores [{absent}]" in failure(world_of(processes=1, cores=(0, absent)))


def test_a_free_port_can_be_listened_on():
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.getsockname()[0] == "127.0.0.1"
