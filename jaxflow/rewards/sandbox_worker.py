"""The process that runs reward code: imports the user's file once, then scores the rows it is sent.

Imports the standard library alone, so that it starts in milliseconds and holds nothing of the trainer's. Messages
are JSON frames (rewards/wire.py) on one socket; standard output and error belong to the user's code.
"""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxflow.rewards.sandbox_filter import protect
from jaxflow.rewards.sandbox_guard import guard
from jaxflow.rewards.sandbox_limits import limit, limit_processor_time
from jaxflow.rewards.verdict import described, read_verdict
from jaxflow.rewards.wire import Unpacker, pack
from jaxflow.source_file import SourceError, run_source

_NO_LIMIT = 2**32
_READ_BYTES = 2**16


def main(arguments: Sequence[str]) -> None:
    """Be the guard of a worker; the arguments are the file descriptors of its two sockets."""
    line, control = map(int, arguments)
    guard(control, lambda: _serve(line), line)


def _serve(line: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    os.set_inheritable(line, False)
    incoming = _frames(line)
    setup = next(incoming)
    try:
        scorer = _Scorer(line, setup)
    except _Refused as refusal:
        _send(line, {"refused": str(refusal)})
        return
    missing = limit(setup["memory_megabytes"])
    # The guard, which could not clear up any more, and the trainer above it.
    if not protect([os.getppid(), *setup["protected"]]):
        missing.append("signals to other processes")
    _send(line, {"ready": missing})
    for message in incoming:
        if not scorer.run(message["token"], message["calls"]):
            return


class _Refused(Exception):
    """Why the user's file cannot score anything."""


class _Scorer:
    """The user's function, and the line on which its results go."""

    def __init__(self, line: int, setup: Mapping[str, object]):
        self._line, self._batch, self._more = line, setup["batch"], setup["arguments"]
        self._cpu_seconds = setup["timeout_seconds"] * (os.cpu_count() or 1)
        self._pid = os.getpid()
        function = _load(setup, self._keywords([("", "", "", {})]))
        self._function: Callable[..., object] = function
        if inspect.iscoroutinefunction(function):
            loop = asyncio.new_event_loop()
            self._function = lambda **given: loop.run_until_complete(function(**given))

    def _keywords(self, rows: Sequence[Sequence[object]]) -> dict[str, object]:
        """Return the arguments of one call, by verl's names."""
        names = ("data_source", "solution_str", "ground_truth", "extra_info")
        if not self._batch:
            return dict(zip(names, rows[0], strict=True)) | self._more
        columns = [list(column) for column in zip(*rows, strict=True)]
        return dict(zip([f"{name}s" for name in names], columns, strict=True)) | self._more

    def run(self, token: str, calls: Sequence[Sequence[Sequence[object]]]) -> bool:
        """Make the calls, each with its rows, and send what comes of them; False if this process should end."""
        _send(self._line, [token, "begin"])
        for rows in calls:
            limit_processor_time(self._cpu_seconds)
            results, spent = self._call(rows)
            # A process that the user's code forked comes by here too, and has nothing to say.
            if os.getpid() != self._pid:
                os._exit(0)
            _send(self._line, [token, results])
            if spent:
                _send(self._line, [token, "leaving"])
                return False
        return True

    def _call(self, rows: Sequence[Sequence[object]]) -> tuple[list[object], bool]:
        """Return one result for each row, and whether memory ran out."""
        try:
            returned = self._function(**self._keywords(rows))
            if not self._batch:
                return [_result(returned)], False
            listed = list(returned)
            if len(listed) != len(rows):
                raise ValueError(f"the reward returned {len(listed)} results for {len(rows)} rows")
            return [_result_or_error(one) for one in listed], False
        except MemoryError as error:
            return [["crash", described(error)]] * len(rows), True
        except BaseException as error:  # exit() too
            return [["error", described(error)]] * len(rows), False


def _result(returned: object) -> list[object]:
    verdict = read_verdict(returned)
    return [verdict.score, verdict.accuracy, verdict.numbers, verdict.prediction]


def _result_or_error(returned: object) -> list[object]:
    try:
        return _result(returned)
    except (TypeError, ValueError) as error:
        return ["error", described(error)]


def _load(setup: Mapping[str, object], arguments: Mapping[str, object]) -> Callable[..., object]:
    """Import the file and find its function; `arguments` are such as it will be called with."""
    path, name = pathlib.Path(setup["path"]), setup["name"]
    try:
        names = run_source(path, setup["source"].encode("utf-8", "surrogateescape"), "reward")
    except SourceError as error:
        raise _Refused(str(error)) from error
    if name not in names:
        raise _Refused(f"{path}: no {name!r} there; reward.function must give a name that the file defines")
    function = names[name]
    if not callable(function):
        raise _Refused(f"{path}: {name!r} is not a function; it must return the score when called")
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{argument}=…" for argument in arguments)
        raise _Refused(f"{path}: {name!r} cannot be called as {name}({shown}): {error}") from error
    return function


def _frames(line: int) -> Iterator[Mapping[str, object]]:
    unpacker = Unpacker()
    while data := os.read(line, _READ_BYTES):
        yield from unpacker.feed(data, _NO_LIMIT)


def _send(line: int, value: object) -> None:
    data = memoryview(pack(value))
    while data:
        data = data[os.write(line, data) :]


if __name__ == "__main__":
    main(sys.argv[1:])
