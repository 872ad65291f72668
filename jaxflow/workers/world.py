"""How a process of a pool joins its `jax.distributed` world and owns its devices.

Knows no role, no mesh and no transport of calls: whoever starts the processes tells each one its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import math
import os
import pathlib
import socket
import sys
import time

import jax

# The two things that JAX does not offer in public: its coordination client, and the address that gloo listens on.
from jax._src import distributed, xla_bridge
from jax.extend import backend
from jaxlib import _jax

from jaxflow.types import UserError

# A process that leaves waits so long for the others; whoever kills processes waits for none.
_LEAVE_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class World:
    """The processes of one pool, and which of them this one is."""

    pool: str
    platform: str  # cpu: simulated devices | gpu
    processes: int
    process_index: int
    devices_per_process: int
    coordinator: str  # host:port on process 0; unused by a single process
    loopback: bool  # all processes are on this machine, and nothing may listen beyond it
    start_timeout_seconds: float  # all processes must be there by then
    heartbeat_timeout_seconds: float  # a process that was silent for so long is dead, and the others end
    collective_timeout_seconds: float  # longest wait for a peer inside a collective on the CPU
    compilation_cache: str  # folder of compiled programs; empty: off
    cores: tuple[int, ...]  # CPU cores of this process, Linux only; empty: all


def free_port() -> int:
    """Return a TCP port that nobody on this machine uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))  # every address is probed, and none opened: nothing listens
        return probe.getsockname()[1]


def join(world: World) -> list[jax.Device]:
    """Join the other processes and return the pool's devices in mesh order, process 0's first.

    Call it once and before JAX is used; a single process may also take devices that were there before.
    Raises UserError if cores, devices or processes are missing.
    """
    if world.cores:
        _pin(world)
    if world.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", world.compilation_cache)
        # Small programs are most of a small run's start; reading one back beats compiling it from 0.1 s on.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if world.platform == "cpu":
        _simulate(world.devices_per_process)
    if world.processes > 1:
        _connect(world)
    return _devices(world)


def _pin(world: World) -> None:
    """Keep every thread of this process, and those XLA is about to start, on the world's cores."""
    if sys.platform != "linux":
        raise UserError(f"pool {world.pool}: cores can be given to a process on Linux alone; leave them out")
    missing = set(world.cores) - os.sched_getaffinity(0)
    if missing:
        raise UserError(
            f"pool {world.pool}, process {world.process_index}: cores {sorted(missing)} are not this process's "
            f"to use; there are {sorted(os.sched_getaffinity(0))}"
        )
    for thread in pathlib.Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), world.cores)
        except ProcessLookupError:  # the thread has ended meanwhile
            continue


def _simulate(devices: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        logging.getLogger(__name__).info("this process had set its devices up before")


def _connect(world: World) -> None:
    """Form the world: every process listens on the address by which it reaches the coordinator, on no other."""
    family, address, own = _route(world)
    if world.loopback and not ipaddress.ip_address(own).is_loopback:
        raise UserError(f"pool {world.pool}: its process 0 is at {world.coordinator}, which is not loopback")
    _meet(world, family, address)
    if world.loopback:
        os.environ["NCCL_SOCKET_IFNAME"] = "=lo"  # exactly this interface, not all that begin so
    flag = f"--xla_cpu_collective_timeout_seconds={math.ceil(world.collective_timeout_seconds)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    _listen_on(own)
    jax.distributed.initialize(
        world.coordinator,
        num_processes=world.processes,
        process_id=world.process_index,
        # Counted among those that CUDA_VISIBLE_DEVICES leaves.
        local_device_ids=range(world.devices_per_process) if world.platform == "gpu" else None,
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(world.start_timeout_seconds),
        heartbeat_timeout_seconds=math.ceil(world.heartbeat_timeout_seconds),
        shutdown_timeout_seconds=_LEAVE_SECONDS,
        coordinator_bind_address=world.coordinator,
    )


def _route(world: World) -> tuple[socket.AddressFamily, tuple, str]:
    """Return the coordinator's address, and the address of this machine from which it is reached."""
    host, _, port = world.coordinator.rpartition(":")
    try:
        ((family, kind, _, _, address), *_) = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_DGRAM
        )
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # a datagram socket finds its route and sends nothing
            return family, address, probe.getsockname()[0]
    except OSError as error:
        raise UserError(
            f"pool {world.pool}: its process 0 at {world.coordinator} is out of reach ({error})"
        ) from error


def _meet(world: World, family: socket.AddressFamily, address: tuple) -> None:
    """Wait at the coordinator's port until every process is there: JAX aborts a process that waits in vain.

    Each process sends its index in four bytes, and process 0 answers all with one when it has heard from all.
    """
    deadline = time.monotonic() + world.start_timeout_seconds
    place = f"pool {world.pool}, process {world.process_index} of {world.processes} at {world.coordinator}"
    if world.process_index > 0:
        if not _announce(world.process_index, address, deadline):
            raise UserError(
                f"{place}: process 0 did not gather the world in {world.start_timeout_seconds:.0f} s"
            )
        return
    try:
        server = socket.create_server(address, family=family)
    except OSError as error:
        raise UserError(f"{place} cannot listen there ({error})") from error
    missing = _gather(server, set(range(1, world.processes)), deadline)
    if missing:
        raise UserError(f"{place}: no process {sorted(missing)} in {world.start_timeout_seconds:.0f} s")


def _gather(server: socket.socket, expected: set[int], deadline: float) -> set[int]:
    """Hear from all expected processes, leave the port and answer them; return those that were not there."""
    heard: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as connections:
        with server:
            while missing := expected - heard.keys():
                try:
                    server.settimeout(_left(deadline))
                    connection = connections.enter_context(server.accept()[0])
                    connection.settimeout(_left(deadline))
                    heard[int.from_bytes(connection.recv(4, socket.MSG_WAITALL))] = connection
                except TimeoutError:
                    return missing
                except ConnectionError:  # gone again before it said who it was
                    continue
        for index in expected:
            try:
                heard[index].sendall(b"1")
            except ConnectionError:
                return {index}
    return set()


def _announce(index: int, address: tuple, deadline: float) -> bool:
    """Tell process 0 that this one is there; return whether it answered that all are."""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address[:2], timeout=_left(deadline)) as connection:
                connection.sendall(index.to_bytes(4))
                connection.settimeout(_left(deadline))
                return connection.recv(1) == b"1"
        except ConnectionRefusedError:  # process 0 is on its way
            time.sleep(0.1)
        except OSError:
            return False
    return False


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 1e-3)


def _listen_on(address: str) -> None:
    """Have gloo, the collectives between CPU devices, listen on one address instead of the host name's."""

    def client() -> object:
        collectives = _jax.make_gloo_tcp_collectives(
            distributed_client=distributed.global_state.client, hostname=address
        )
        return xla_bridge.make_cpu_client(collectives=collectives)

    backend.register_backend_factory("cpu", client, priority=0, fail_quietly=False)


def _devices(world: World) -> list[jax.Device]:
    try:
        devices = jax.devices(world.platform)
    except RuntimeError as error:
        raise UserError(f"pool {world.pool}: no {world.platform} devices here ({error})") from error
    owned: list[jax.Device] = []
    for process in range(world.processes):
        # Ids have gaps between processes and grow within one.
        found = sorted((d for d in devices if d.process_index == process), key=lambda d: d.id)
        if len(found) < world.devices_per_process:
            raise UserError(
                f"pool {world.pool} needs {world.devices_per_process} {world.platform} devices in process "
                f"{process}, found {len(found)}"
            )
        owned += found[: world.devices_per_process]
    return owned
