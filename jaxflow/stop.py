"""SIGTERM and SIGINT as a wish that the run ends well. Knows no run."""

from __future__ import annotations

import signal
from types import FrameType


class Stop:
    """Notes the first signal: the step under way ends, the state is saved, then the run ends.

    A second signal ends the process at once, as if nobody listened.
    """

    def __init__(self) -> None:
        self._number: int | None = None

    def listen(self) -> None:
        """Take the signals over from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def wished(self) -> bool:
        """Whether a signal came."""
        return self._number is not None

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal's number, as shells do; 0 if none came."""
        return 0 if self._number is None else 128 + self._number
