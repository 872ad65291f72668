"""PPO whose roles fail on order: an algorithm file of the user's, as any other.

`order.json` beside this file names a call, a process of its pool and what that process does before the call, from
its `after`-th time on in one life. It is done once: who does it takes the order away and leaves its process id in
`done`. Each process of a pool of several leaves `of_several.ID`. Tests copy this file to a folder of their own.
"""

import json
import os
import pathlib
import signal
import time

import jax

from jaxflow.dataflow import Dataflow
from jaxflow.dataflow.ppo import ppo
from jaxflow.workers.model_free_roles import Estimator
from jaxflow.workers.protocol import exposed, exposed_methods
from jaxflow.workers.reward import Reward
from jaxflow.workers.roles import Actor, Critic, Reference

HERE = pathlib.Path(__file__).parent
times: dict[str, int] = {}


def obey(call):
    times[call] = times.get(call, 0) + 1
    try:
        order = json.loads((HERE / "order.json").read_text())
    except FileNotFoundError:
        return
    if (order["call"], order["process"]) == (call, jax.process_index()) and times[call] >= order["after"]:
        (HERE / "order.json").unlink()
        (HERE / "writing").write_text(str(os.getpid()))
        (HERE / "writing").rename(HERE / "done")
        DEEDS[order["deed"]](order["seconds"])


def die(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def stop(seconds):
    os.kill(os.getpid(), signal.SIGSTOP)


def fail(seconds):
    raise KeyError("on order")


def sleep(seconds):
    time.sleep(seconds)


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


DEEDS = {deed.__name__: deed for deed in (die, stop, fail, sleep, spin)}


def obedient(role, role_class):
    """A subclass that looks for orders before each exposed method."""

    def method(name, found):
        def call(self, *arguments):
            obey(f"{role}.{name}")
            return found.function(self, *arguments)

        return exposed(found.stage, found.protocol, found.replicated, found.by_parts)(call)

    methods = {name: method(name, found) for name, found in exposed_methods(role_class).items()}
    return type(role_class.__name__, (role_class,), methods)


CLASSES = {"actor": Actor, "critic": Critic, "reference": Reference, "reward": Reward, "estimator": Estimator}
ALGORITHM = Dataflow(ppo, tuple(CLASSES), {role: obedient(role, found) for role, found in CLASSES.items()})

if jax.distributed.is_initialized():
    (HERE / f"of_several.{os.getpid()}").touch()
