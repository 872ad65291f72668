"""The devices under test and how programs on them are timed. Knows no program."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Bench:
    """The devices under test, all in one row."""

    mesh: Mesh
    dtype: str
    repeats: int
    # Count this process's CPU seconds over the machine's cores, not the wall's: where others are at work. Waits for
    # them are left out then, and so are a program's own.
    cpu_seconds: bool = False

    @property
    def platform(self) -> str:
        """Return `cpu` or `gpu`."""
        return self.mesh.devices.flat[0].platform

    def each(self, *shape: int, dtype: str | None = None) -> Array:
        """Return ones of this shape on each device."""
        whole = (self.mesh.size, *shape)
        sharding = NamedSharding(self.mesh, PartitionSpec("device"))
        return jax.jit(lambda: jnp.ones(whole, dtype or self.dtype), out_shardings=sharding)()

    def seconds(self, program: Callable, *arguments: Array) -> float:
        """Return the least time of several runs: what others on the machine take comes on top, never off."""
        return min(self.times(compiled(program, *arguments)))

    def typical(self, program: Callable, *arguments: Any) -> float:
        """Return the middle of the times of several runs: of programs whose own waits vary."""
        return self.median(compiled(program, *arguments))

    def median(self, call: Callable[[], Any]) -> float:
        """Return the middle of the times of several calls."""
        return statistics.median(self.times(call))

    def times(self, call: Callable[[], Any], repeats: int = 0) -> list[float]:
        """Return the times of so many calls (0: as many as all others have), after one that is not timed."""
        jax.block_until_ready(call())
        times = []
        for _ in range(repeats or self.repeats):
            started = self._now()
            jax.block_until_ready(call())
            times.append(self._now() - started)
        return times

    def _now(self) -> float:
        return time.process_time() / os.cpu_count() if self.cpu_seconds else time.perf_counter()


def compiled(program: Callable, *arguments: Any) -> Callable[[], Any]:
    """Compile a program; return the call of it."""
    made = jax.jit(program).lower(*arguments).compile()
    return lambda: made(*arguments)


def bench(devices: Sequence[jax.Device], repeats: int, cpu_seconds: bool = False) -> Bench:
    """Return a bench of these devices; half precision where there is hardware for it."""
    mesh = Mesh(np.asarray(devices, dtype=object), ("device",), axis_types=(AxisType.Auto,))
    return Bench(mesh, "float32" if devices[0].platform == "cpu" else "bfloat16", repeats, cpu_seconds)
