"""Processes of two pools, one of them a world of two, that end, stop, hang or fail: noticed, named, replaced."""

import json
import os
import pathlib
import re
import shutil
import signal
import time

import pytest
from processes import gone, hosts, listens_beyond_loopback
from runs import Command, flags, rows

from jaxflow.config import pool

pytestmark = pytest.mark.slow

POOLS = {
    "policy": pool(["actor", "reference"], 2, 1, data=2),
    "judges": pool(["critic", "reward", "estimator"], 1, 1),
}
PROCESSES = sum(described.hosts for described in POOLS.values())
HEARTBEAT, STAGE = 6.0, 25.0  # seconds
CHANGES = {
    "warm_start.steps": 100,
    "run.total_steps": 20,
    "run.evaluate_before": False,
    "run.evaluate_every_steps": 2,
    "rollout.parts": 2,
    "checkpoint.every_steps": 1,
    "cluster.max_restarts": 20,
    "cluster.heartbeat_timeout_seconds": HEARTBEAT,
}
STEP = " · score "  # in the line of every step
LATE_SECONDS = 60  # a machine shared with others gets round to things late


class Faulty:
    """A run whose processes obey orders."""

    def __init__(self, folder, **changes):
        self.folder, self.workdir = folder, folder / "run"
        shutil.copy(pathlib.Path(__file__).with_name("orders.py"), folder)
        algorithm = {"algorithm.name": f"{folder}/orders.py:ALGORITHM"}
        self._arguments = flags(self.workdir, pools=POOLS, **(CHANGES | algorithm | changes))
        self._before = set()

    def start(self):
        return Command(*self._arguments)

    def order(self, call, process, deed, seconds=0.0, after=3):
        order = {"call": call, "process": process, "deed": deed, "seconds": seconds, "after": after}
        (self.folder / "new").write_text(json.dumps(order))
        (self.folder / "new").rename(self.folder / "order.json")

    def done(self):
        """Wait until the order is done; return by which process."""
        deadline = time.monotonic() + LATE_SECONDS
        while not (self.folder / "done").exists():
            assert time.monotonic() < deadline, "the order was not carried out"
            time.sleep(0.01)
        process = int((self.folder / "done").read_text())
        (self.folder / "done").unlink()
        return process

    def of_several(self):
        """Every process that ever belonged to the pool of two."""
        return {int(path.suffix[1:]) for path in self.folder.glob("of_several.*")}

    def new_life(self, command):
        """Wait for a step of a life of its own: all its processes are there, and none of an earlier one."""
        command.wait_for(STEP)
        workers = hosts(command.pid)
        assert len(workers) == PROCESSES and not self._before & workers, (self._before, workers)
        self._before |= workers
        return workers


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An undisturbed run."""
    run = Faulty(tmp_path_factory.mktemp("straight"))
    with run.start() as command:
        ended = command.end()
        assert ended.code == 0 and ended.errors == "", ended.errors
        assert gone(command.pid)
    return run.workdir


KILLED = [
    ("actor.generate", 0, "policy", "gen"),
    ("reward.score", 0, "judges", "reward"),
    ("actor.update", 1, "policy", "update_actor"),
    ("actor.save", 1, "policy", "save_checkpoint"),
    ("actor.generate_validation", 0, "policy", "testing"),
]


def test_a_run_whose_processes_die_or_fail_in_every_stage_ends_with_the_same_metrics(straight, tmp_path):
    run = Faulty(tmp_path)
    with run.start() as command:
        while not (first := hosts(command.pid)):
            time.sleep(0.01)
        # Pools start by name. The first one's single process may be up before it is hit; these wait for each other.
        while not (others := hosts(command.pid) - first):
            time.sleep(0.01)
        os.kill(min(others), signal.SIGKILL)
        line = command.wait_for("; restart 1 of")
        assert re.search(
            r"pool\.start failed in pool \w+, process \d.*: the process ended .* in stage start;", line
        )

        command.wait_for("first supervised step")
        victim = max(run.of_several() & hosts(command.pid))
        os.kill(victim, signal.SIGKILL)
        line = command.wait_for("; restart 2 of")
        assert re.search(rf"student\.imitate failed in pool policy, process \d \(pid {victim}\)", line), line

        for restarts, (call, process, name, stage) in enumerate(KILLED, start=3):
            run.order(call, process, "die", 0.5)  # by then the answer of the call before has left the process
            run.new_life(command)
            victim = run.done()
            line = command.wait_for("; restart ")
            place = f"pool {name}, process {process} (pid {victim})"
            assert f"{call} failed in {place}: the process ended" in line, line
            assert f"in stage {stage}; restart {restarts} of at most 20" in line, line

        run.order("actor.log_probs", 1, "fail")
        run.new_life(command)
        victim = run.done()
        line = command.wait_for("; restart ")  # while its peer waits for it
        place = f"pool policy, process 1 (pid {victim})"
        assert f"actor.log_probs failed in {place}: KeyError: 'on order'; restart" in line, line
        ended = command.end()
        assert ended.code == 0 and ended.errors == "", ended.errors
        assert "raylet" not in ended.output and "Traceback" not in ended.output
        assert gone(command.pid)
    assert rows(run.workdir) == rows(straight)


def stacks_of(line):
    return pathlib.Path(re.search(r"is in (\S+stacks_\S+\.txt)", line)[1]).read_text()


def test_what_hangs_is_lost_and_what_takes_long_is_not(straight, tmp_path):
    """Its programs are compiled: in the other run's time, not in that of a stage."""
    run = Faulty(
        tmp_path, **{"run.total_steps": 1000, "warm_start.steps": 0, "cluster.stage_timeout_seconds": STAGE}
    )
    with run.start() as command:
        run.order("reward.score", 0, "spin", 1.5 * HEARTBEAT)
        run.new_life(command)
        assert listens_beyond_loopback(command.alive()) == []
        run.done()
        command.wait_for(STEP)
        run.order("actor.generate", 1, "stop")
        victim, struck = run.done(), time.monotonic()
        line = command.wait_for("; restart 1 of")  # one pool busy, the other waiting: none was lost before
        assert HEARTBEAT < time.monotonic() - struck < 2 * HEARTBEAT + LATE_SECONDS
        assert (
            f"actor.generate failed in pool policy, process 1 (pid {victim}): no sign of life for 6 s" in line
        )
        assert f"=== pool policy, process 1 (pid {victim})\nno answer" in stacks_of(line)
        assert victim not in command.alive()

        run.order("reference.log_probs", 1, "sleep", 1000)
        run.new_life(command)
        victim, struck = run.done(), time.monotonic()
        line = command.wait_for("; restart 2 of")
        assert STAGE - 1 < time.monotonic() - struck < STAGE + LATE_SECONDS
        place = f"pool policy, process 1 (pid {victim})"
        assert f" and {place}: over its 25 s in stage ref; what" in line  # the other one waited for it
        of_victim = stacks_of(line).partition(f"=== {place}\n")[2].partition("===")[0]
        assert "in sleep\n    time.sleep(seconds)" in of_victim

        run.order("critic.values", 0, "stop")
        run.new_life(command)
        victim = run.done()
        command.send_to_group(signal.SIGINT)  # a wish: it ends with the step, which never does
        ended = command.end()
        assert gone(command.pid)
    assert ended.code == 130 and ended.errors == "", ended.errors
    assert f"(pid {victim}): no sign of life" in ended.output and "restart 3" not in ended.output
