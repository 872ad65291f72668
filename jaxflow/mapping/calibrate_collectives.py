"""What an all-reduce costs devices that compute: inside one process, and between two processes of this machine.

    python -m jaxflow.mapping.calibrate_collectives COORDINATOR INDEX DEVICES REPEATS CORES   # one of the two

Calibrate starts both, each on the cores that a run would give it.

Each round is a product and sums over pairs of devices, one waiting for the other, as in a layer; what the rounds
take without sums is subtracted. So waiting for a neighbour whose turn on the cores has not come is in it. Between
processes that is nearly all: XLA's sockets (gloo) have a thread that asks the kernel again and again what there
is to read, and on a single core it asks until the system takes the core from it, 3 to 4 ms.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxflow.mapping.measuring import Bench, bench, compiled
from jaxflow.placement import dealt_cores
from jaxflow.types import UserError

_ROUNDS = 16
_WIDTH = 128
_SMALL, _LARGE = 8, 4096  # rows of what is summed: 4 kB and 2 MB
_ARRAYS = 4  # that a round sums, small ones: each waits by itself
_WORK = 256  # rows of the product beside it
_TIMEOUT_SECONDS = 180.0


def pairwise(on: Bench) -> tuple[float, float]:
    """Return α in seconds and bytes per second of the sum of an array over two of the devices, all pairs at once.

    Pairs are of neighbours, and of devices half a row apart: inside processes and between two of them. α is the mean
    of both. Of an all-reduce over n devices 2 (n−1)/n of its bytes pass: over two, all.
    """
    near, far = ("other", "pair"), ("pair", "other")
    kinds = (near, far) if on.mesh.size > 2 else (far,)
    alone = statistics.median(_round_seconds(on, far, 0, 0))
    # What waits for a turn is α's, and is there at every sum; what bytes take is seen where nothing waited.
    several = statistics.fmean(statistics.median(_round_seconds(on, axes, _ARRAYS, _SMALL)) for axes in kinds)
    small, large = (min(_round_seconds(on, far, 1, rows)) for rows in (_SMALL, _LARGE))
    alpha = max(several - alone, 1e-9) / _ARRAYS
    # Where others on the machine disturbed the small one, a tenth of the large one is taken to be its bytes.
    return alpha, 4.0 * (_LARGE - _SMALL) * _WIDTH / max(large - small, 0.1 * large)


def _round_seconds(on: Bench, axes: tuple[str, str], summed: int, rows_each: int) -> list[float]:
    """Return the times of a round whose product is followed by the sums of so many arrays of so many rows."""
    shape = (2, -1) if axes[0] == "pair" else (-1, 2)
    mesh = Mesh(on.mesh.devices.reshape(shape), axes, axis_types=(AxisType.Auto,) * 2)
    spec = PartitionSpec(axes)

    def rounds(x, arrays, w):
        def body(carry, _):
            x, arrays = carry
            x = jnp.tanh(x @ w)
            if summed > 0:
                arrays = [0.5 * y for y in jax.lax.psum([y + x[:1] for y in arrays], "pair")]
                x = x + 1e-3 * sum(y[:1] for y in arrays)
            return (x, arrays), None

        return jax.lax.scan(body, (x, arrays), None, length=_ROUNDS)[0]

    def ones(rows: int):
        whole = jax.NamedSharding(mesh, spec)
        return jax.jit(lambda: jnp.ones((on.mesh.size * rows, _WIDTH)), out_shardings=whole)()

    weights = jax.jit(lambda: jnp.eye(_WIDTH), out_shardings=jax.NamedSharding(mesh, PartitionSpec()))()
    each = jax.shard_map(
        rounds, mesh=mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=(spec, spec), check_vma=False
    )
    call = compiled(each, ones(_WORK), [ones(rows_each) for _ in range(summed)], weights)
    return [seconds / _ROUNDS for seconds in on.times(call)]


def between_processes(devices: int, repeats: int) -> tuple[float, float]:
    """Return α and bytes per second of sums between two processes on this machine, of half the devices each.

    Raises UserError where they do not come to an end.
    """
    available = sorted(os.sched_getaffinity(0))
    (cores,) = dealt_cores({"two": 2}, available).values()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    each = str(max(1, devices // 2))
    command = [sys.executable, "-m", "jaxflow.mapping.calibrate_collectives", coordinator]
    started = [
        subprocess.Popen(
            [*command, str(index), each, str(repeats), ",".join(map(str, cores[index]))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=_TIMEOUT_SECONDS) for process in started]
    except subprocess.TimeoutExpired as error:
        raise UserError(f"two processes that were to exchange arrays did not end: {error}") from error
    finally:
        for process in started:
            process.kill()
    if any(process.returncode != 0 for process in started):
        raise UserError(f"two processes that were to exchange arrays failed: {outputs[0][1][-500:]}")
    alpha, bandwidth = json.loads(outputs[0][0].splitlines()[-1])
    return alpha, bandwidth


def main(arguments: Sequence[str]) -> None:
    """Be one of two processes; print what was measured."""
    coordinator, index, devices, repeats, cores = arguments
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, 2, int(index))
    print(json.dumps(pairwise(bench(jax.devices(), int(repeats)))))


if __name__ == "__main__":
    main(sys.argv[1:])
