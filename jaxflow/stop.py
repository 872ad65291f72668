"""SIGTERM and SIGINT as a wish that the run ends well. Knows no run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN_SECONDS = 0.05  # after which a signal is sent again whose exception was lost


class Stopped(BaseException):
    """A signal that ends the program now. Not an `Exception`: no handler of errors may swallow it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal's number, as shells do."""
        return 128 + self.number


class Stop:
    """Listens to signals: first they end the program, later the first one is a wish and the second ends it.

    Ending unwinds the program (its child processes and the terminal are given back); a signal during that
    ends the process on the spot. A signal that arrives in a finaliser or in a callback of the garbage collector, where
    Python drops exceptions, comes again a moment later.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._noted: int | None = None
        # Where they were told of before
        self._dropped: Callable[[sys.UnraisableHookArgs], object] | None = None

    def listen(self) -> None:
        """Take the signals over: each raises `Stopped` in the main thread. Call it there."""
        for number in _SIGNALS:
            signal.signal(number, self._receive)
        if self._dropped is None:
            self._dropped, sys.unraisablehook = sys.unraisablehook, self._send_again

    def defer(self) -> None:
        """Let the next signal be noted as a wish instead."""
        self._deferring = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._deferring:
            self._deferring, self._noted = False, number
            return
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    def _send_again(self, unraisable: sys.UnraisableHookArgs) -> None:
        stopped = unraisable.exc_value
        if not isinstance(stopped, Stopped):
            self._dropped(unraisable)
            return
        self.listen()
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), stopped.number))
        again.daemon = True
        again.start()

    @property
    def wished(self) -> bool:
        """Whether a signal was noted."""
        return self._noted is not None

    @property
    def exit_code(self) -> int:
        """Return 128 + the noted signal's number, as shells do; 0 if none was noted."""
        return 0 if self._noted is None else 128 + self._noted
