"""Which Ray is joined and which is refused, and what becomes of the token."""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest
from processes import gone, holding, hosts, of_session
from runs import Command, environment, flags

from jaxflow.types import UserError
from jaxflow.workers import cluster
from jaxflow.workers.cluster import running

UP_SECONDS = 90


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def ray_head(**variables):
    """A cluster of somebody else's on loopback; yields its address, its session and the folder of its files."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ray_"))  # a test's own has too long a name for sockets
    address = f"127.0.0.1:{free_port()}"
    inherited = {k: v for k, v in environment().items() if not k.startswith("RAY_AUTH_")}
    arguments = ["--head", "--block", "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}"]
    arguments += [
        "--num-cpus=1",
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--temp-dir={folder}",
    ]
    with open(folder / "log", "w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments],
            env=inherited | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + UP_SECONDS
        while "Ray runtime started" not in pathlib.Path(log.name).read_text():
            assert time.monotonic() < deadline and started.poll() is None, pathlib.Path(log.name).read_text()
            time.sleep(0.1)
        yield address, started.pid, folder
    finally:
        for number in of_session(started.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        started.wait()
        shutil.rmtree(folder)


def refusal(address):
    with pytest.raises(UserError) as refused, running(address, 1):
        pass
    return str(refused.value)


@pytest.mark.parametrize("mode", [None, "disabled"])
def test_a_running_cluster_is_joined_in_token_mode_alone(monkeypatch, mode):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    message = refusal("10.0.0.1:6379")
    assert "cluster.address = '10.0.0.1:6379'" in message and "RAY_AUTH_MODE=token" in message


def test_a_running_cluster_is_not_joined_without_a_token(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert "no token; set RAY_AUTH_TOKEN_PATH" in refusal("10.0.0.1:6379")


@pytest.mark.parametrize(
    ("code", "errors", "expected"),
    [
        (0, "", "lets in whoever comes without a token"),
        (1, "Traceback\nRpcError: Timed out while waiting", "no Ray was found there: RpcError: Timed out"),
        (1, "", "no Ray was found there: no reason given"),
        (None, "", "no answer in 60 s"),
    ],
)
def test_what_does_not_turn_a_stranger_away_is_not_joined(monkeypatch, code, errors, expected):
    """The stranger knocks in a process of its own, without any token of ours."""
    seen = {}

    def run(command, env, **options):
        seen.update(env)
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, code, "", errors)

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.setattr(cluster.subprocess, "run", run)
    assert expected in refusal("10.0.0.1:6379")
    assert seen["RAY_AUTH_MODE"] == "disabled" and "a" * 64 not in seen.values()


@pytest.mark.slow
def test_a_run_on_a_running_cluster_tells_its_token_nobody_and_leaves_nothing_when_it_is_killed(tmp_path):
    token = secrets.token_hex(32)
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with ray_head(**secret) as (address, session, folder):
        changes = {"cluster.address": address, "run.total_steps": 1000, "checkpoint.every_steps": 1}
        with Command(*flags(tmp_path / "run", **changes), **secret) as command:
            command.wait_for("step 2/")
            assert hosts(session)
            lines = [*command.alive().values(), *of_session(session).values()]
            assert all(token not in line for line in lines)
            command.send(signal.SIGKILL)
            assert gone(command.pid) and gone(session, ["ray::Host"])
        assert holding(token, tmp_path) == [] and holding(token, folder) == []


@pytest.mark.slow
def test_a_running_cluster_that_lets_everybody_in_is_refused(tmp_path):
    with ray_head(RAY_AUTH_MODE="disabled") as (address, _, _):
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        with Command(*flags(tmp_path / "run", **{"cluster.address": address}), **secret) as command:
            ended = command.end()
    assert ended.code == 2 and "lets in whoever comes without a token" in ended.errors
    assert len(ended.errors.splitlines()) == 1
