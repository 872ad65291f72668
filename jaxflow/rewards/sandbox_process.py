"""One worker process that runs reward code, as the trainer holds it: started, spoken to, killed with all below it.

Knows one worker and the calls it was given. Does not know which rows are left, and runs no code of the user's.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from jaxflow.rewards.verdict import Case, Failure, Reason, Verdict, finite, shortened
from jaxflow.rewards.wire import Unpacker, WireError, pack
from jaxflow.types import UserError

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from jaxflow.rewards import sandbox_worker; sandbox_worker.main(sys.argv[2:])"
)
_READ_BYTES = 2**16
_OUTPUT_KEPT_BYTES, _OUTPUT_SHOWN_CHARACTERS = 4096, 300
_FRAME_BYTES, _ROW_BYTES = (
    2**16,
    2**14,
)  # a message may have so many, and so many more for each row it is about
_LAST_WORDS_SECONDS = 2.0  # that a dying worker's guard has to tell why
_CLEARING_SECONDS = 30.0  # that it has to end all below it; killed before that, it would leave some
_START_SECONDS = 120.0  # to import the user's file, which may load large data

Call = tuple[int, ...]
"""Rows that are scored in one call of the user's function, by their place in the batch."""


@dataclasses.dataclass(frozen=True)
class FunctionFile:
    """A function in a file of the user's, as it was when the run read it."""

    path: pathlib.Path
    name: str
    source: str  # UTF-8, what cannot be decoded as surrogates
    arguments: Mapping[str, object]  # passed beside the row's, by name; JSON values
    batch: bool  # called once with lists


@dataclasses.dataclass(frozen=True)
class Limits:
    """What reward code may use."""

    processes: int  # that score at the same time
    timeout_seconds: float  # of wall clock for one call
    memory_megabytes: int  # of each process, above what it holds after importing the file


class Worker:
    """A worker process. It is `idle` when it is ready and has no calls; not `alive` any more, it is to be replaced."""

    def __init__(self, function: FunctionFile, limits: Limits):
        self._limits = limits
        self._line, line = socket.socketpair()
        self._control, control = socket.socketpair()
        paths = [os.path.abspath(path) for path in sys.path]
        paths.append(str(pathlib.Path(__file__).parents[2]))
        command = [sys.executable, "-c", _BOOT, json.dumps(paths), str(line.fileno()), str(control.fileno())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(line.fileno(), control.fileno()),
            start_new_session=True,
        )
        line.close()
        control.close()
        for file in (self._line, self._control):
            file.setblocking(False)
        os.set_blocking(self._process.stdout.fileno(), False)
        self._frames = Unpacker()
        self._output = bytearray()  # the end of what its code wrote
        self._writes = True  # its code has not closed the output
        self._unsent = bytearray()
        self._calls: collections.deque[Call] = collections.deque()
        self._token = ""
        self._begun = False  # it has taken the calls up: the first one is running
        self._ready = False
        self._given, self._given_at = 0, 0.0
        self.missing_limits: list[str] = []  # known once it is ready
        self.alive = True
        self.deadline = time.monotonic() + _START_SECONDS
        setup = {
            "path": str(function.path),
            "name": function.name,
            "source": function.source,
            "arguments": function.arguments,
            "batch": function.batch,
            "memory_megabytes": limits.memory_megabytes,
            "timeout_seconds": limits.timeout_seconds,
            "protected": [os.getpid(), os.getpgrp()],
        }
        self._send(setup)

    @property
    def idle(self) -> bool:
        """Return whether it waits for calls."""
        return self.alive and self._ready and not self._calls

    @property
    def busy(self) -> bool:
        """Return whether something is to come from it: results, or that it is ready."""
        return self.alive and not self.idle

    @property
    def seconds_per_call(self) -> float:
        """Return how long the last calls took it, once it is idle again."""
        return max(1e-6, (time.monotonic() - self._given_at) / self._given)

    def descriptors(self) -> tuple[list[int], list[int]]:
        """Return what to wait for: file descriptors to read, and to write."""
        line = self._line.fileno()
        to_read = [line, self._control.fileno()]
        to_read += [self._process.stdout.fileno()] if self._writes else []
        return to_read, [line] if self._unsent else []

    def give(self, calls: Sequence[Call], cases: Sequence[Case]) -> None:
        """Send an idle worker calls to make, one after the other."""
        self._calls.extend(calls)
        # A new word for every message: what answers with another one is no answer.
        self._token, self._begun = secrets.token_hex(8), False
        self._given, self._given_at = len(calls), time.monotonic()
        rows = [[tuple(vars(cases[row]).values()) for row in call] for call in calls]
        self.deadline = time.monotonic() + self._limits.timeout_seconds
        self._send({"token": self._token, "calls": rows})

    def _send(self, value: object) -> None:
        self._unsent += pack(value)
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._unsent:
                del self._unsent[: self._line.send(self._unsent)]

    def attend(self) -> tuple[dict[int, Verdict | Failure], list[Call]]:
        """Take in what came, look at the clock: the results that are there now, and the calls that it gives back.

        Whatever ends the worker fails the call that was running, and gives back those that had not begun.

        Raises:
          UserError: the user's file could not be imported, or not in time.
        """
        self._flush()
        results: dict[int, Verdict | Failure] = {}
        self._read_output()
        try:
            gone = self._read_line(results)
        except WireError as error:
            return self._end("crash", f"sent {error}", results)
        if not self.alive:  # it left by itself, its memory spent
            return results, self._returned()
        words = self._last_words(wait=gone)
        if words is not None:
            # What it had said before it ended counts, and may have come meanwhile.
            with contextlib.suppress(WireError):
                self._read_line(results)
            reason: Reason = "timeout" if "SIGXCPU" in words else "crash"
            return self._end(reason, f"its process {words}", results)
        if self.busy and time.monotonic() > self.deadline:
            seconds = self._limits.timeout_seconds if self._ready else _START_SECONDS
            return self._end("timeout", f"no answer within {seconds:g} s", results)
        return results, []

    def _read_line(self, results: dict[int, Verdict | Failure]) -> bool:
        """Read messages; return whether the line is closed."""
        while True:
            try:
                data = self._line.recv(_READ_BYTES)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            if not data:
                return True
            limit = _FRAME_BYTES + _ROW_BYTES * max(map(len, self._calls), default=0)
            for message in self._frames.feed(data, limit):
                self._take(message, results)
                if not self.alive:
                    return True

    def _take(self, message: object, results: dict[int, Verdict | Failure]) -> None:
        match message:
            case {"ready": [*missing]} if not self._ready:
                self._ready, self.missing_limits = True, [str(limit) for limit in missing]
            case {"refused": str(reason)} if not self._ready:
                self.kill()
                raise UserError(reason)
            case [self._token, "begin"] if self._calls and not self._begun:
                self._begun = True
                self.deadline = time.monotonic() + self._limits.timeout_seconds
            case [self._token, "leaving"] if self._begun:
                self.kill()
            case [self._token, [*told]] if self._begun and self._calls and len(told) == len(self._calls[0]):
                for row, result in zip(self._calls.popleft(), told, strict=True):
                    results[row] = _read_result(result)
                self.deadline = time.monotonic() + self._limits.timeout_seconds
            case _:
                raise WireError("a message that was not asked for")

    def _read_output(self) -> None:
        """Read once what its code writes, and keep the end: it never waits, and fills no memory."""
        with contextlib.suppress(BlockingIOError):
            written = os.read(self._process.stdout.fileno(), _READ_BYTES)
            self._writes = written != b""
            self._output += written
            del self._output[:-_OUTPUT_KEPT_BYTES]

    def _last_words(self, wait: bool) -> str | None:
        """Return how the process ended, None while it has not; the guard may need a moment to tell."""
        seconds = _LAST_WORDS_SECONDS if wait else 0.0
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return "closed its line" if wait else None
        try:
            told = list(Unpacker().feed(self._control.recv(_FRAME_BYTES), _FRAME_BYTES))
        except (OSError, WireError):
            told = []
        match told:
            case [{"ended": str(words)}]:
                return words
        return "ended with its guard"

    def _end(
        self, reason: Reason, message: str, results: dict[int, Verdict | Failure]
    ) -> tuple[dict[int, Verdict | Failure], list[Call]]:
        """Kill it; the call that was running fails for this reason."""
        self._read_output()
        self.kill()
        message += self._shown_output()
        if not self._ready:
            raise UserError(f"the process that was to import the reward file failed: {message}")
        # A call given and never taken up is only to blame for a worker that had all its time for it.
        if self._calls and (self._begun or reason == "timeout"):
            results |= dict.fromkeys(self._calls.popleft(), Failure(reason, message))
        return results, self._returned()

    def _shown_output(self) -> str:
        """Return, for a message, the end of what its code wrote; of a crash's stack, the innermost calls."""
        written = self._output.decode(errors="replace").strip()
        if not written:
            return ""
        crash = written.rfind("Fatal Python error")
        shown = (
            written[-_OUTPUT_SHOWN_CHARACTERS:]
            if crash < 0
            else written[crash : crash + _OUTPUT_SHOWN_CHARACTERS]
        )
        return f"; its last output: {shown!r}"

    def _returned(self) -> list[Call]:
        calls = list(self._calls)
        self._calls.clear()
        return calls

    def kill(self) -> None:
        """End the process and everything below it; nothing is left when this returns."""
        if not self.alive:
            return
        self.alive = False
        self._control.close()  # upon which the guard kills all below it, and ends
        self._line.close()
        try:
            self._process.wait(_CLEARING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._read_output()
        self._process.stdout.close()


def _read_result(result: object) -> Verdict | Failure:
    """Read a result, trusting nothing in it: the user's code runs in the process that sent it."""
    match result:
        case [("error" | "crash") as reason, str(message)]:
            return Failure(reason, message)
        case [score, accuracy, dict(more), str() | None as told]:
            try:
                numbers = {str(name): finite(number, "a number") for name, number in more.items()}
                prediction = None if told is None else shortened(told)
                worth = finite(score, "the score"), finite(accuracy, "the accuracy")
                return Verdict(*worth, numbers, prediction)
            except (TypeError, ValueError) as error:
                raise WireError(f"a result that cannot be: {error}") from error
    raise WireError("a result of no known form")
