"""Ray itself: one of our own on this machine, or a running one that asks for a token. Knows no pool and no role."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ray

from jaxflow.types import UserError

# Where Ray looks for a token before it looks into the home folder.
_TOKEN, _TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_STATISTICS_BYTES = 16 << 10  # results that small come here by themselves; larger ones stay in the store
_PROBE_SECONDS = 60  # that a cluster has to refuse a stranger; it takes three where nothing else runs


@contextlib.contextmanager
def running(address: str, processes: int) -> Iterator[None]:
    """Be connected to Ray: at this address, or where it is empty to one that starts and ends here.

    Raises UserError if there is none at the address, or one that would let anybody in.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address:
        _join(address)
    else:
        _start(processes)
    try:
        yield
    finally:
        ray.shutdown()


def _start(processes: int) -> None:
    """Start a Ray of our own: loopback alone, a token of its own, no dashboard, no usage reports."""
    # Unset, Ray turns token authentication on for a cluster it starts itself; set by us after `import ray`, it
    # would not see it. A user's opt-out is for other clusters: whoever can talk to this one runs code as its user.
    if os.environ.get("RAY_AUTH_MODE") != "token":
        os.environ.pop("RAY_AUTH_MODE", None)
    # A token of this run alone: the file that Ray would make in the home folder can be read by others.
    if not {_TOKEN, _TOKEN_PATH} & os.environ.keys():
        os.environ[_TOKEN] = secrets.token_hex(32)
    _connect(
        address="local",
        # Each process of a pool takes one CPU; which cores it runs on is decided elsewhere.
        num_cpus=processes,
        include_dashboard=False,
        # Ray would hand results below 100 kB to the caller, which is us: rows are to go from worker to worker.
        _system_config={"max_direct_call_object_size": _STATISTICS_BYTES},
    )


def _join(address: str) -> None:
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise UserError(
            f"cluster.address = {address!r}: a Ray that others can reach must ask for a token, or whoever finds "
            "it runs code as its user; start it with RAY_AUTH_MODE=token and set that here too"
        )
    if (
        not {_TOKEN, _TOKEN_PATH} & os.environ.keys()
        and not Path.home().joinpath(".ray/auth_token").is_file()
    ):
        raise UserError(
            f"cluster.address = {address!r}: no token; set {_TOKEN_PATH} to the file that holds the cluster's"
        )
    _refuse_open(address)
    try:
        _connect(address=address)
    except Exception as error:  # Ray raises what it likes: connection, authentication, version
        reason = str(error).partition("\n")[0]
        raise UserError(f"cluster.address = {address!r}: could not join it: {reason}") from error


def _refuse_open(address: str) -> None:
    """Knock without a token, in a process of its own: Ray decides once per process. Raises UserError if let in."""
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        knocked = subprocess.run(
            command,
            env=stranger | {"RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"cluster.address = {address!r}: no answer in {_PROBE_SECONDS} s") from error
    if knocked.returncode == 0:
        raise UserError(
            f"cluster.address = {address!r}: this Ray lets in whoever comes without a token, and runs their code as "
            "its user; start all its nodes with RAY_AUTH_MODE=token"
        )
    if "AuthenticationError" not in knocked.stderr:
        reason = (knocked.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"cluster.address = {address!r}: no Ray was found there: {reason}")


def _connect(**options: object) -> None:
    """Call `ray.init` and keep the program's SIGTERM: Ray puts two handlers of its own in its place."""
    ours = signal.getsignal(signal.SIGTERM)
    came = False
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except SystemExit:  # the first of the two, while it connects
        came = True
    finally:
        signal.signal(signal.SIGTERM, ours)
    if came:
        signal.raise_signal(signal.SIGTERM)
