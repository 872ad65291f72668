"""What an all-reduce costs devices that compute: inside one process, and between two processes of this machine.

    python -m jaxflow.mapping.calibrate_collectives COORDINATOR INDEX DEVICES     # one of the two

Calibrate starts both.

Each round is a product and a sum over pairs of devices, one waiting for the other, as in a layer; what the rounds
take without sums is subtracted. So waiting for a neighbour whose turn on the cores has not come is in it.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxflow.mapping.measuring import Bench, bench, compiled
from jaxflow.types import UserError

_ROUNDS = 16
_WIDTH = 128
_SMALL, _LARGE = 8, 1024  # rows of what is summed: 4 kB and 512 kB
_WORK = 256  # rows of the product beside it
_REPEATS = 40
_TIMEOUT_SECONDS = 180.0


def pairwise(on: Bench) -> tuple[float, float]:
    """Return α in seconds and bytes per second of a sum over two of the devices, all pairs at once.

    Of an all-reduce over n devices 2 (n−1)/n of its bytes pass: over two, all.
    """
    alone, small, large = (_round_seconds(on, rows) for rows in (0, _SMALL, _LARGE))
    # What waits for a turn varies, and all of it is α's; what bytes take is seen where nothing waited.
    alpha = max(statistics.fmean(small) - statistics.fmean(alone), 1e-9)
    return alpha, 4.0 * (_LARGE - _SMALL) * _WIDTH / max(min(large) - min(small), 1e-9)


def _round_seconds(on: Bench, summed: int) -> list[float]:
    """Return the times of a round whose product is followed by a sum of so many rows."""
    mesh = Mesh(on.mesh.devices.reshape(2, -1), ("pair", "other"), axis_types=(AxisType.Auto,) * 2)
    spec = PartitionSpec(("pair", "other"))

    def rounds(x, rows, w):
        def body(carry, _):
            x, rows = carry
            x = jnp.tanh(x @ w)
            if summed > 0:
                rows = 0.5 * jax.lax.psum(rows + x[:1], "pair")
                x = x + 1e-3 * rows[:1]
            return (x, rows), None

        return jax.lax.scan(body, (x, rows), None, length=_ROUNDS)[0]

    def ones(rows: int):
        whole = jax.NamedSharding(mesh, spec)
        return jax.jit(lambda: jnp.ones((on.mesh.size * rows, _WIDTH)), out_shardings=whole)()

    weights = jax.jit(lambda: jnp.eye(_WIDTH), out_shardings=jax.NamedSharding(mesh, PartitionSpec()))()
    each = jax.shard_map(
        rounds, mesh=mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=(spec, spec), check_vma=False
    )
    call = compiled(each, ones(_WORK), ones(max(summed, 1)), weights)
    return [seconds / _ROUNDS for seconds in on.times(call, _REPEATS)]


def between_processes(devices: int) -> tuple[float, float]:
    """Return α and bytes per second of sums between two processes on this machine, of half the devices each.

    Raises UserError where they do not come to an end.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    each = str(max(1, devices // 2))
    command = [sys.executable, "-m", "jaxflow.mapping.calibrate_collectives", coordinator]
    started = [
        subprocess.Popen(
            [*command, str(index), each],
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
    coordinator, index, devices = arguments
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, 2, int(index))
    print(json.dumps(pairwise(bench(jax.devices(), _REPEATS))))


if __name__ == "__main__":
    main(sys.argv[1:])
