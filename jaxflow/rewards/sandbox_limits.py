"""What a process that runs reward code may use, and that it dies with the one that watches it.

Linux first: a limit that the system lacks is named to the caller, not hidden. Imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
_SHARED_MEMORY_FACTOR = 4  # address space also counts what is reserved and never used
_LARGEST_FILE_BYTES = 256 * 2**20
_MEGABYTE = 2**20


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose own parent ends; False where the system cannot."""
    return _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Be killed when the parent ends; False where the system cannot."""
    return _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def limit(memory_megabytes: int) -> list[str]:
    """Limit this process, and each that it starts, beyond what it holds now; return what could not be limited.

    Args:
      memory_megabytes: private memory above what is in use at this moment.
    """
    missing = []
    used = _used_bytes()
    more = memory_megabytes * _MEGABYTE
    if used is None:
        missing.append("memory")
    else:
        data, address_space = used
        ok = _lower(resource.RLIMIT_DATA, data + more)
        ok &= _lower(resource.RLIMIT_AS, address_space + _SHARED_MEMORY_FACTOR * more)
        missing += [] if ok else ["memory"]
    missing += [] if _lower(resource.RLIMIT_FSIZE, _LARGEST_FILE_BYTES) else ["file size"]
    _lower(resource.RLIMIT_CORE, 0)
    _prefer_when_memory_is_short()
    return missing


def limit_processor_time(seconds: float) -> None:
    """Let this process use so many more seconds of one core before it is killed (by SIGXCPU)."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime + seconds) + 2)


def _lower(which: int, value: int) -> bool:
    """Set a soft limit, never above the hard one, which stays: a soft limit may be moved again."""
    _, hard = resource.getrlimit(which)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (soft, hard))
    except (ValueError, OSError):
        return False
    return True


def _used_bytes() -> tuple[int, int] | None:
    """Return private data and address space of this process; None where no /proc tells."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.split(":", 1) for line in status if ":" in line)
        return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmData", "VmSize"))
    except (OSError, KeyError):
        return None


def _prefer_when_memory_is_short() -> None:
    """Be the first that the system ends when the machine's memory is full."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("1000")
    except OSError:
        return


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0


def parent_is(pid: int) -> bool:
    """Return whether the parent still is the one that it was."""
    return os.getppid() == pid
