"""Runs of a model so small that a step takes milliseconds: in this process, or as a user starts them."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
from processes import of_session

from jaxflow.config import default_config_dict, from_config_dict
from jaxflow.controller import Controller
from jaxflow.main import prepare
from jaxflow.run_directory import RunDirectory
from jaxflow.stop import Stop
from jaxflow.tracking.console import Console
from jaxflow.workers.future import CallList
from jaxflow.workers.launch import launched

ROOT = pathlib.Path(__file__).parents[1]
CONFIG_FILE = ROOT / "configs" / "ppo_tiny.py"
STEPS = 4
LINE_SECONDS = 300  # against hangs alone: tests run side by side

MICRO = {
    "run.total_steps": STEPS,
    "actor.model.width": 32,
    "actor.model.layers": 1,
    "actor.model.heads": 2,
    "actor.model.kv_heads": 2,
    "actor.model.head_width": 16,
    "actor.model.mlp_width": 64,
    "cluster.pools.main.devices_per_host": 2,
    "cluster.pools.main.mesh.data": 2,
    "cluster.pools.main.mesh.tensor": 1,
    "data.task": "addition",
    "data.max_prompt_tokens": 8,
    "data.prompts_per_step": 8,
    "data.validation_prompts": 16,
    "rollout.samples_per_prompt": 2,
    "rollout.max_response_tokens": 8,
    "actor.optimizer.schedule": "constant",
    "actor.optimizer.warmup_updates": 0,
    "critic.optimizer.schedule": "constant",
    "critic.optimizer.warmup_updates": 0,
    "actor.optimizer.learning_rate": 3e-4,
    "critic.optimizer.learning_rate": 1e-3,
    "actor.minibatch_sequences": 8,
    "critic.minibatch_sequences": 8,
    "warm_start.steps": 3,
    "warm_start.sequences_per_step": 8,
    "tracking.tensorboard": False,  # tests/tracking sees to it; here it costs every process a second
}
CONFIG_WITH_POOLS = """
import runpy

def get_config():
    config = runpy.run_path({file!r})["get_config"]()
    config.cluster.pools = {pools!r}
    return config
"""
# Two axes, each step with a real switch of layouts.
FOUR_DEVICES = {"cluster.pools.main.devices_per_host": 4, "cluster.pools.main.mesh.tensor": 2}
# What the clock decides; all else is a function of the config.
TIMINGS = (
    "timing_",
    "perf/throughput",
    "perf/time_per_step",
    "perf/controller",
    "perf/generation",  # what slots there are is the placement's
    "transition/seconds",
    "offload/seconds",
)


class StopAfter(Stop):
    """A signal that arrives while the given step runs."""

    def __init__(self, asked):
        super().__init__()
        self._left = asked

    @property
    def wished(self):
        self._left -= 1
        return self._left < 0

    @property
    def exit_code(self):
        return 143


def micro(pools):
    """The micro run's keys, those of its one pool left out where other pools are asked for."""
    return {k: v for k, v in MICRO.items() if pools is None or not k.startswith("cluster.pools.")}


def config_of(pools=None, **changes):
    """The micro config as the schema reads it."""
    values = default_config_dict()
    if pools is not None:
        values.cluster.pools = pools
    values.update_from_flattened_dict({**micro(pools), "cluster.launcher": "inprocess", **changes})
    return from_config_dict(values)


def run_here(workdir, stop=None, pools=None, **changes):
    """Run in this process; return the exit code and what the console said."""
    config = config_of(pools, **changes)
    job, directory = prepare(config), RunDirectory(workdir, config.checkpoint.keep)
    directory.acquire()
    calls, written = CallList(), io.StringIO()
    jax.devices()  # the session's eight: a pool must not be the first to ask
    try:
        with (
            Console(config.run.total_steps, file=written) as console,
            launched(config, job.derived, calls, workdir) as workers,
        ):
            listening = Stop() if stop is None else stop
            controller = Controller(job, directory, workers, console, listening, time.monotonic())
            code = controller.run(directory.latest())
    finally:
        directory.release()
    return code, written.getvalue()


def rows(workdir):
    """metrics.jsonl without what the clock decides."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMINGS)} for line in lines]


def flags(workdir, pools=None, **changes):
    """The command line of a micro run; with pools, of a config file that is written beside the workdir."""
    file = CONFIG_FILE
    if pools is not None:
        file = workdir.parent / f"{workdir.name}.py"
        described = {name: json.loads(described.to_json()) for name, described in pools.items()}
        file.write_text(CONFIG_WITH_POOLS.format(file=str(CONFIG_FILE), pools=described))
    overrides = [f"--config.{key}={value}" for key, value in {**micro(pools), **changes}.items()]
    return [f"--config={file}", f"--workdir={workdir}", *overrides]


def environment():
    """A user's environment, where compiled programs are kept and found beside those of this process."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclasses.dataclass(frozen=True)
class Ended:
    code: int
    output: str
    errors: str


class Command:
    """`python -m jaxflow.main …` in a session and process group of its own, as a terminal starts it."""

    def __init__(self, *arguments, **variables):
        self._output = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jaxflow.main", *arguments],
            cwd=ROOT,
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill_all()
        self._process.communicate()

    def wait_for(self, text):
        """Read until a line holds the text and return that line; fail where the run ends before."""
        deadline = time.monotonic() + LINE_SECONDS
        for line in self._process.stdout:
            self._output += line
            if text in line:
                return line
            assert time.monotonic() < deadline, self._output
        raise AssertionError(f"no line with {text!r}:\n{self._output}{self._process.stderr.read()}")

    def send(self, number):
        os.kill(self.pid, number)

    def send_to_group(self, number):
        """As a terminal does on Ctrl-C."""
        os.killpg(self.pid, number)

    def end(self):
        rest, errors = self._process.communicate(timeout=LINE_SECONDS)
        return Ended(self._process.returncode, self._output + rest, errors)

    def kill_all(self):
        """SIGKILL the driver and everything it started, at one instant as far as that goes."""
        for number in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def alive(self):
        """The processes of the session, by id, with their command lines; zombies are none."""
        return of_session(self.pid)


def run_to_end(*arguments, **variables):
    with Command(*arguments, **variables) as command:
        return command.end()
