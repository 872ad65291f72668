"""Real processes: Ray's and the driver's, killed, stopped and attacked at their worst moments."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import gone, halt, holding, hosts, listens_beyond_loopback
from runs import LINE_SECONDS, Command, environment, flags, rows, run_to_end

from jaxflow.config import pool

pytestmark = pytest.mark.slow

REWARD = """
import pathlib, time
def compute_score(data_source, solution_str, ground_truth, extra_info):
    if pathlib.Path(__file__).with_name("slow").exists():
        time.sleep(0.03)
    return len(solution_str) / 8
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Changes for a run whose every step can be caught, with the Kullback-Leibler coefficient as state."""
    folder = tmp_path_factory.mktemp("reward")
    (folder / "reward.py").write_text(REWARD)
    (folder / "slow").touch()
    return {
        "reward.function": f"{folder}/reward.py:compute_score",
        "algorithm.kl.controller": "adaptive",
        "algorithm.kl.horizon_sequences": 50.0,
        "checkpoint.every_steps": 1,
        "warm_start.steps": 100,
    }


@pytest.fixture(scope="module")
def straight(asked, tmp_path_factory):
    """An uninterrupted run in Ray."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    with Command(*flags(workdir, **asked)) as command:
        ended = command.end()
        assert ended.code == 0 and ended.errors == "", ended.errors
        assert gone(command.pid)
    return workdir


def test_both_launchers_give_the_same_bits(straight, asked, tmp_path):
    ended = run_to_end(*flags(tmp_path, **asked, **{"cluster.launcher": "inprocess"}))
    assert ended.code == 0, ended.errors
    assert rows(tmp_path) == rows(straight)


def wait_for_a_save(workdir):
    deadline = time.monotonic() + 300
    while not list(workdir.glob("checkpoints/.writing_*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("moment", "launcher"), [("warm start", "inprocess"), ("save", "inprocess"), ("step", "ray")]
)
def test_a_killed_run_goes_on_with_the_same_bits(straight, asked, tmp_path, moment, launcher):
    workdir = tmp_path / "run"
    arguments = flags(workdir, **asked, **{"cluster.launcher": launcher})
    with Command(*arguments) as command:
        command.wait_for({"warm start": "first supervised", "save": "step 1/", "step": "step 2/"}[moment])
        if moment == "save":
            wait_for_a_save(workdir)
        command.kill_all()
        assert command.end().code == -signal.SIGKILL
    if moment == "save":
        assert list(workdir.glob("checkpoints/.writing_*"))
    assert moment == "warm start" or len(rows(workdir)) < 5
    ended = run_to_end(*arguments)
    assert ended.code == 0, ended.errors
    assert rows(workdir) == rows(straight)


@pytest.mark.parametrize("asks", ["ctrl-c", "sigterm"])
def test_a_run_that_is_asked_to_stop_saves_and_the_same_command_goes_on(straight, asked, tmp_path, asks):
    with Command(*flags(tmp_path, **asked)) as command:
        command.wait_for("step 2/")
        if asks == "ctrl-c":
            command.send_to_group(signal.SIGINT)
        else:
            command.send(signal.SIGTERM)
        ended = command.end()
        assert ended.code == {"ctrl-c": 130, "sigterm": 143}[asks] and ended.errors == "", ended.errors
        assert "the same --workdir continues" in ended.output
        assert gone(command.pid)
    done = rows(tmp_path)
    assert len(done) < 5 and done == rows(straight)[: len(done)]
    if asks == "ctrl-c":
        # The launcher decides no bit, and this one starts sooner.
        assert run_to_end(*flags(tmp_path, **asked, **{"cluster.launcher": "inprocess"})).code == 0
        assert rows(tmp_path) == rows(straight)


def test_sigterm_saves_and_a_second_one_ends_at_once(asked, tmp_path):
    changes = asked | {"cluster.launcher": "inprocess", "run.total_steps": 1000, "checkpoint.every_steps": 0}
    with Command(*flags(tmp_path, **changes)) as command:
        command.wait_for("step 1/")
        command.send(signal.SIGTERM)
        ended = command.end()
    assert ended.code == 143 and ended.errors == ""
    assert list((tmp_path / "checkpoints").glob("step_*/manifest.json"))
    with Command(*flags(tmp_path, **changes)) as command:
        command.wait_for("resumed after step")
        command.wait_for("step ")
        command.send(signal.SIGTERM)
        time.sleep(0.1)  # two signals at one instant are one to the system
        command.send(signal.SIGTERM)
        ended = command.end()
    assert ended.code == 143 and ended.errors == "stopped by SIGTERM\n"


CLIENT = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.is_initialized())"


def client(address, seconds, variables):
    """Try to join a cluster; return whether it let us in."""
    inherited = {k: v for k, v in environment().items() if not k.startswith("RAY_")}
    inherited["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # look for the cluster on loopback, where it is
    command = [sys.executable, "-c", CLIENT, address]
    try:
        ended = subprocess.run(
            command,
            env=inherited | variables,
            capture_output=True,
            text=True,
            timeout=seconds,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0 and "True" in ended.stdout


def test_ray_lets_nobody_in_without_the_token_and_dies_with_its_driver_even_where_a_worker_is_stopped(
    tmp_path,
):
    two = {"main": pool(["actor", "critic", "reference", "reward", "estimator"], 2, 1, data=2)}
    changes = {"run.total_steps": 100_000, "warm_start.steps": 0, "run.evaluate_before": False}
    with Command(*flags(tmp_path / "run", pools=two, **changes)) as command:
        command.wait_for("step 1/")
        raylet, line = next((n, line) for n, line in command.alive().items() if "raylet/raylet" in line)
        address = re.search(r"--gcs-address=(\S+)", line)[1]
        assert listens_beyond_loopback(command.alive()) == []
        variables = pathlib.Path(f"/proc/{raylet}/environ").read_text().split("\0")
        token = dict(item.split("=", 1) for item in variables if "=" in item)["RAY_AUTH_TOKEN"]
        assert all(token not in line for line in command.alive().values())
        known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        started = time.monotonic()
        assert client(address, LINE_SECONDS, known)
        # Strangers try on and on; whoever was let in would be by then.
        patience = 10 + 2 * (time.monotonic() - started)
        strangers = known | {"RAY_AUTH_TOKEN": "0" * len(token)}, {"RAY_AUTH_MODE": "disabled"}
        with ThreadPoolExecutor() as threads:
            assert not any(threads.map(lambda stranger: client(address, patience, stranger), strangers))

        halt(min(hosts(command.pid)))  # its peer waits in a collective
        os.kill(command.pid, signal.SIGKILL)
        assert gone(command.pid)


def test_a_killed_worker_is_one_message_and_loses_no_checkpoint(asked, tmp_path):
    token = "5ec2e7" * 10
    changes = asked | {"run.total_steps": 1000, "cluster.max_restarts": 0}
    with Command(*flags(tmp_path, **changes), RAY_AUTH_TOKEN=token) as command:
        command.wait_for("step 2/")
        (worker,) = hosts(command.pid)
        os.kill(worker, signal.SIGKILL)
        ended = command.end()
        assert gone(command.pid)
    message, limit, place = ended.errors.splitlines()
    assert ended.code == 3 and "Traceback" not in ended.output and "raylet" not in ended.output
    assert re.search(
        rf"^error: \w+\.\w+ failed in pool main, process 0 \(pid {worker}\): the process ended", message
    )
    assert limit == "no restart is left: cluster.max_restarts is 0"
    assert place == f"the trace is in {tmp_path}/error.log" and (tmp_path / "error.log").stat().st_size > 0
    assert (tmp_path / "checkpoints/step_00000001/manifest.json").exists()
    assert holding(token, tmp_path) == []
    assert token not in ended.output


def test_an_error_inside_a_worker_reaches_the_user_once(asked, tmp_path):
    reward = tmp_path / "reward.py"
    reward.write_text("def compute_score(**row):\n    raise KeyError('gone')\n")
    changes = asked | {"reward.function": f"{reward}:compute_score", "run.evaluate_before": False}
    with Command(*flags(tmp_path / "run", **changes)) as command:
        ended = command.end()
        assert gone(command.pid)
    assert ended.code == 2 and "Traceback" not in ended.errors + ended.output
    assert ended.errors.count("error: ") == 1 and "KeyError: 'gone' (prompt" in ended.errors
