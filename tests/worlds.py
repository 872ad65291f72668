"""Worlds of several processes: plain Python processes, each with simulated devices, joined by jax.distributed.

    worlds.run(function, processes, devices_per_process, directory, *arguments)

calls a function of a test module in every process of a new world and returns what they returned, in order of
process: dictionaries of NumPy arrays. Arguments are plain values, which travel as JSON.
"""

import itertools
import json
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import threading

import jax
import numpy as np

from jaxflow.engine.mesh import AXES
from jaxflow.engine.rows import block

TESTS = pathlib.Path(__file__).parent
SECONDS = 600  # a world that takes longer hangs


def run(function, processes, devices_per_process, directory, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "file": function.__code__.co_filename,
        "function": function.__name__,
        "arguments": arguments,
        "address": f"127.0.0.1:{port}",
        "processes": processes,
        "devices": devices_per_process,
        "directory": str(directory),
    }
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "JAX_PLATFORMS": "cpu",
    }
    logs = [pathlib.Path(directory) / f"process{index}.log" for index in range(processes)]
    started = []
    try:
        for index, log in enumerate(logs):
            command = [sys.executable, __file__, str(index), json.dumps(job)]
            with log.open("w") as output:
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
                    )
                )
        codes = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdin.close()
    assert codes == [0] * processes, "\n".join(log.read_text() for log in logs)[-6000:]
    return [dict(np.load(_result(directory, index))) for index in range(processes)]


def _result(directory, index):
    return pathlib.Path(directory) / f"process{index}.npz"


def rows_of_process(process, devices_per_process, sizes, axes, total):
    """Which rows a process should hold: from the coordinates of its devices on the mesh, one by one."""
    data, fsdp, tensor, generation_tensor = sizes
    shape = (data, fsdp, 1, 1, 1, generation_tensor, tensor // generation_tensor)
    kept = [name in axes for name in AXES]
    places = [tuple(itertools.compress(at, kept)) for at in np.ndindex(shape)]
    order = sorted(set(places))
    mine = places[devices_per_process * process : devices_per_process * (process + 1)]
    held = sorted({order.index(place) for place in mine})
    return [row for index in held for row in range(total)[block(total, len(order), index)]]


def _end_with_parent():
    sys.stdin.read()  # the parent never writes: this returns when it is gone
    os._exit(1)


def _be_one_of(index, job):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    jax.config.update("jax_num_cpu_devices", job["devices"])
    jax.distributed.initialize(
        job["address"], job["processes"], index, initialization_timeout=60, shutdown_timeout_seconds=10
    )
    returned = runpy.run_path(job["file"])[job["function"]](*job["arguments"])
    np.savez(_result(job["directory"], index), **returned)
    jax.distributed.shutdown()


if __name__ == "__main__":
    _be_one_of(int(sys.argv[1]), json.loads(sys.argv[2]))
