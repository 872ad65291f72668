"""How processes of a pool end, and what is said of those that do not come up."""

import os
import signal
import subprocess
import sys
import time
import types

import pytest
from runs import config_of

from jaxflow.placement import MeshSizes
from jaxflow.types import UserError
from jaxflow.workers import in_ray
from jaxflow.workers.in_ray import InRay, end_processes
from jaxflow.workers.protocol import RoleRefusal, WorkerLost
from jaxflow.workers.resource_pool import ResourcePool


@pytest.fixture
def process():
    with subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1
    ) as started:
        started.stdout.readline()
        yield started
        started.kill()


def test_a_process_that_ends_as_it_is_told_is_given_the_time(process):
    process.terminate()
    end_processes([process.pid])
    assert process.wait() == -signal.SIGTERM


def test_a_stopped_process_that_hears_nothing_is_gone_all_the_same(process):
    os.kill(process.pid, signal.SIGSTOP)
    end_processes([process.pid])
    assert process.poll() == -signal.SIGKILL


def test_processes_that_are_gone_are_not_waited_for(process, monkeypatch):
    process.kill()
    process.wait()
    monkeypatch.setattr(in_ray.time, "sleep", pytest.fail)
    end_processes([process.pid])


class Pending:
    """What a process was asked, and what comes of it; `answer` None: nothing, ever."""

    def __init__(self, answer):
        self.answer = answer


@pytest.fixture
def pool(monkeypatch):
    def wait(references, num_returns, timeout):
        ready = [reference for reference in references if reference.answer is not None][:1]
        return ready, [reference for reference in references if reference not in ready]

    def bring(references):
        for reference in references:
            if isinstance(reference.answer, Exception):
                raise reference.answer
        return [reference.answer for reference in references]

    monkeypatch.setattr(in_ray, "ray", types.SimpleNamespace(wait=wait))
    monkeypatch.setattr(in_ray, "bring", bring)
    described = ResourcePool("main", "cpu", 3, 1, MeshSizes(3, 1, 1, 1), ("actor",), "")
    return InRay(config_of(**{"cluster.start_timeout_seconds": 7.0}), None, described)


LOST = WorkerLost("pool", "call", "a process", "the process ended", "its trace")


def test_a_process_that_ends_before_the_others_answer_is_named_at_once(pool):
    pool._pids = [40, 41, 42]
    asked = [Pending(None), Pending(LOST), Pending("there")]
    with pytest.raises(
        WorkerLost, match=r"in pool main, process 1 \(pid 41\): the process ended .* stage start"
    ) as lost:
        pool._wait(asked, time.monotonic() + 7)
    assert lost.value.trace == "its trace"


def test_processes_that_never_came_up_are_the_users_to_look_after(pool):
    with pytest.raises(
        UserError, match=r"its 3 worker processes were not up after 7 s; raise cluster.start_timeout"
    ):
        pool._wait([Pending("there"), Pending(None), Pending(None)], time.monotonic() + 7)


def test_a_process_that_was_up_and_answers_no_more_is_lost(pool):
    pool._pids = [40, 41, 42]
    with pytest.raises(WorkerLost, match=r"process 2 \(pid 42\): no answer in stage start for 7 s"):
        pool._wait([Pending("there"), Pending("there"), Pending(None)], time.monotonic() + 7)


def test_a_refusal_while_the_pool_starts_stays_one(pool):
    pool._pids = [40, 41, 42]
    refusal = RoleRefusal("pool", "start", "process 0", "no gpu devices here", "")
    with pytest.raises(UserError, match=r"^no gpu devices here$"):
        pool._wait([Pending(refusal), Pending(None), Pending(None)], time.monotonic() + 7)
