"""One worker process of a pool: owns its devices, hosts the roles placed there, runs one call at a time.

Knows no dataflow and does not import Ray: the same class lives in a Ray actor or in the controller's process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.engine.mesh import make_mesh
from jaxflow.types import Span, UserError
from jaxflow.workers.calls import CallHeader, Given, Joined, Plain
from jaxflow.workers.cast import role_class
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import CallRecord, RoleError, RoleRefusal, exposed_methods, now
from jaxflow.workers.resource_pool import ResourcePool
from jaxflow.workers.row_values import byte_count, join_rows, take_rows, token_count
from jaxflow.workers.world import World, free_port, join


class Host:
    """Roles on one mesh, as one process of the pool sees them."""

    def __init__(self, config: Config, derived: Derived, pool: ResourcePool, process: int):
        self._config, self._derived, self._pool, self._process = config, derived, pool, process
        self._place: Place | None = None
        self._roles: dict[str, Any] = {}

    def process_id(self) -> int:
        """Return the system's number of this process."""
        return os.getpid()

    def free_port(self) -> int:
        """Return a port that the pool's processes can meet at."""
        return free_port()

    def start(self, world: World) -> None:
        """Claim this process's devices and meet the others."""
        with self._reporting("pool", "start"):
            self.use(join(world))

    def use(self, devices: Sequence[jax.Device]) -> None:
        """Lay the pool's mesh over these devices, in their order."""
        sizes = self._pool.mesh
        mesh = make_mesh(
            sizes.data,
            sizes.fsdp,
            sizes.training_tensor,
            sizes.tensor,
            devices,
            pipe=sizes.stages,
            generation_pipe=sizes.pipe,
            expert=sizes.expert,
        )
        self._place = Place(mesh)

    def ping(self) -> None:
        """Answer: the process is there and its interpreter runs."""

    def stacks(self) -> str:
        """Return what every Python thread of this process is doing, but the one that asks."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = []
        for ident, frame in sys._current_frames().items():
            if ident != threading.get_ident():
                lines += [f"thread {names.get(ident, ident)}:\n", *traceback.format_stack(frame)]
        return "".join(lines)

    def place(self, role: str) -> CallRecord:
        """Build a role here."""
        started = now()
        place = dataclasses.replace(
            self._place,
            offload=role in self._pool.offload,
            generation_scoring=role in self._pool.generation_scoring,
        )
        with self._reporting(role, "place"):
            self._roles[role] = role_class(self._config, role)(self._config, self._derived, place)
        return CallRecord(Span(self._pool.name, role, "place", started, now() - started, 0, 0), ())

    def remove(self, role: str) -> CallRecord:
        """Let a role and its arrays go."""
        started = now()
        del self._roles[role]
        return CallRecord(Span(self._pool.name, role, "remove", started, now() - started, 0, 0), ())

    def call(self, header: CallHeader, *values: Any) -> Any:
        """Run this process's part of a call: the pieces of its result that it owes, then the record.

        An exception leaves with role, method and process in it.
        """
        method = exposed_methods(type(self._roles[header.role]))[header.method]
        started, place = now(), self._place
        place.inner.clear()
        with self._reporting(header.role, header.method):
            arguments = _arguments(header, values)
            result = method.function(self._roles[header.role], *arguments)
            outputs = _outputs(header, result)
            moved = sum(map(byte_count, values)) + sum(map(byte_count, outputs))
            tokens = token_count((*arguments, result), header.own)
        span = Span(self._pool.name, header.role, method.stage, started, now() - started, moved, tokens)
        inner = [
            Span(span.pool, span.role, part.name, part.started, part.seconds, part.bytes, 0)
            for part in place.inner
        ]
        record = CallRecord(span, tuple(inner))
        return (*outputs, record) if outputs else record

    @contextlib.contextmanager
    def _reporting(self, role: str, method: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            kind = RoleRefusal if isinstance(error, UserError) else RoleError
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            place = process_words(self._pool.name, self._process, os.getpid())
            raise kind(role, method, place, message, traceback.format_exc()) from None


def process_words(pool: str, process: int, pid: int) -> str:
    """Name a process for people."""
    return f"pool {pool}, process {process} (pid {pid})"


def _arguments(header: CallHeader, values: Sequence[Any]) -> tuple[Any, ...]:
    """Make the arguments of a call from what came with it."""
    arguments, position = [], 0
    for argument in header.arguments:
        match argument:
            case Plain(value):
                arguments.append(value)
            case Given():
                arguments.append(values[position])
                position += 1
            case Joined(rows):
                pieces = values[position : position + len(rows)]
                taken = [take_rows(p, r.start, r.stop) for p, r in zip(pieces, rows, strict=True)]
                arguments.append(join_rows(taken))
                position += len(rows)
    return tuple(arguments)


def _outputs(header: CallHeader, result: Any) -> tuple[Any, ...]:
    byte_count(result)  # refuses what may not cross, before it is cut
    if header.outputs is None:
        return (result,)
    return tuple(take_rows(result, rows.start, rows.stop) for rows in header.outputs)
