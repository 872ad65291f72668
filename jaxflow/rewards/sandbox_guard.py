"""The process above one that runs reward code: starts it, watches it, and ends all that it started.

Runs no code of the user's. When its line to the trainer closes, for whatever reason, or the process below ends, or
starts too many others, every descendant is killed, orphans and sessions of their own included. Imports the standard
library alone. Knows no message of the two that it stands between.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
import sys
import time
from collections.abc import Callable

from jaxflow.rewards.sandbox_limits import adopt_orphans, die_with_parent, parent_is
from jaxflow.rewards.wire import pack

PROCESSES_ALLOWED = 64  # of one worker, whatever they do
_TICK_SECONDS = 0.05
_ROUNDS, _DEATH_SECONDS = 1000, 0.001  # of killing, and how long a process may take to be gone


def guard(control: int, below: Callable[[], None], line_below: int) -> None:
    """Run `below` in a child and watch it; never returns.

    Args:
      control: socket to the trainer: closed, all ends; how the child ended is told on it as one frame, {"ended": …}.
      below: the child's work.
      line_below: file descriptor that is the child's alone.
    """
    adopt_orphans()
    me = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(control)
        die_with_parent()
        os.setsid()
        if parent_is(me):
            below()
        os._exit(0)
    os.close(line_below)
    words = _watch(control, child)
    kill_descendants(me)
    if words is not None:
        with contextlib.suppress(OSError):
            os.write(control, pack({"ended": words}))
    os._exit(0)


def _watch(control: int, child: int) -> str | None:
    """Wait for the end; return how the child ended, None if the trainer wants it to."""
    lines = [control, *_line_of_process(child)]
    while True:
        ready, _, _ = select.select(lines, [], [], _TICK_SECONDS)
        if control in ready:
            return None
        status = _reap(child)
        if status is not None:
            return _words(status)
        count = len(descendants(os.getpid()))
        if count > PROCESSES_ALLOWED:
            return f"had {count} processes, the limit is {PROCESSES_ALLOWED}"


def _line_of_process(pid: int) -> list[int]:
    """Return a file descriptor that is readable when the process ends, where there is such a thing."""
    if sys.platform != "linux":
        return []
    try:
        return [os.pidfd_open(pid)]
    except OSError:
        return []


def _reap(child: int) -> int | None:
    """Take the status of every process that ended; return the child's if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _words(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def descendants(root: int) -> list[int]:
    """Return the processes below one, itself not among them."""
    found: list[int] = []
    new = [root]
    while new:
        below = _children(new.pop())
        found += below
        new += below
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text(encoding="ascii").split())
    except OSError:  # gone meanwhile, or no such file system
        return children
    return children


def kill_descendants(root: int) -> None:
    """Kill all that is below a process that adopts orphans: halt first, so that nobody starts another meanwhile."""
    for _ in range(_ROUNDS):
        halted: set[int] = set()
        while (running := set(descendants(root)) - halted) and len(halted) < 100_000:
            for pid in running:
                _signal(pid, signal.SIGSTOP)
            halted |= running
        if not halted:
            return
        for pid in halted:
            _signal(pid, signal.SIGKILL)
        time.sleep(_DEATH_SECONDS)
        _reap(-1)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
