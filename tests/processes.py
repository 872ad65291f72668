"""The processes of a session, seen from outside: which are there, where they listen, whether they end."""

import contextlib
import os
import pathlib
import signal
import time

GONE_SECONDS = 120  # against hangs alone: tests run side by side
CORE = ("jaxflow.main", "ray::Host", "ray::IDLE", "raylet/raylet", "gcs_server")


def of_session(leader):
    """The processes of a session, by id, with their command lines; zombies are none."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


def hosts(leader):
    """The worker processes of a session, those that are starting among them."""
    return {number for number, line in of_session(leader).items() if "ray::Host" in line}


def gone(leader, names=CORE, seconds=GONE_SECONDS):
    """Whether every process that holds devices, data or ports for callers has ended in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(name in line for line in of_session(leader).values() for name in names):
            return True
        time.sleep(0.2)
    return False


def halt(number):
    """Stop a process and wait until the system counts it as stopped: each of its threads has to come to rest.

    Where the parent of a process ends, the system wakes and hangs up on those that it counts so.
    """
    os.kill(number, signal.SIGSTOP)
    deadline = time.monotonic() + GONE_SECONDS
    while any(_state(thread) not in "TZX" for thread in pathlib.Path(f"/proc/{number}/task").iterdir()):
        assert time.monotonic() < deadline, number
        time.sleep(0.01)


def _state(folder):
    """The state of a process or thread, of a folder in /proc; X where it is gone."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def listens_beyond_loopback(processes):
    """The addresses in /proc/net of listening sockets of these processes that other machines could reach."""
    sockets = set()
    for number in processes:
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            for link in pathlib.Path(f"/proc/{number}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    sockets.add(os.readlink(link))
    found = []
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path("/proc/net", table).read_text().splitlines()[1:]:
            address, state, inode = (line.split()[column] for column in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in sockets:
                found.append(address.split(":")[0])
    assert found, "a cluster that listens nowhere was not looked at rightly"
    return [address for address in found if not address.endswith("0100007F")]


def holding(secret, folder):
    """The files of a folder that hold these characters."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files, folder
    return [path for path in files if secret.encode() in path.read_bytes()]
