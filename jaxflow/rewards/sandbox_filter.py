"""A filter in the kernel that keeps reward code from signalling the processes above it, and everybody at once.

Linux on x86-64 and ARM alone (seccomp, which needs no privilege). Imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Sequence

_SET_FILTER, _FILTER, _NO_NEW_PRIVILEGES = 22, 2, 38  # of prctl(2)
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the filter's machine: a word, a comparison, an end
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_CALL_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # places in what the machine sees of a call
_EVERYBODY = -1

# Machine -> its audit number, and the number of kill(2).
_MACHINES = {"x86_64": (0xC000003E, 62), "aarch64": (0xC00000B7, 129)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def protect(processes: Sequence[int]) -> bool:
    """Refuse kill(2) of these processes, of their groups and of everybody, for good, to all that this one starts.

    Returns False where the system has no such filter.
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None or sys.byteorder != "little":
        return False
    program = _program(*machine, [_EVERYBODY, *processes, *(-process for process in processes)])
    libc = ctypes.CDLL(None, use_errno=True)
    # A filter is only taken from who can gain nothing by it: no program of another user's rights is run below.
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    told = _Program(len(program) // 8, program)
    return libc.prctl(_SET_FILTER, _FILTER, ctypes.byref(told), 0, 0) == 0


def _program(architecture: int, kill: int, targets: Sequence[int]) -> bytes:
    """Return the filter's instructions: each comparison skips what follows for as many as it says."""
    count = len(targets)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 0, count + 3, architecture),
        (_LOAD, 0, 0, _CALL_NUMBER),
        (_JUMP_IF_EQUAL, 0, count + 1, kill),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        # From the last target on, one comparison less lies before the refusal, which is behind the permission.
        *((_JUMP_IF_EQUAL, count - place, 0, target & 0xFFFFFFFF) for place, target in enumerate(targets)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
