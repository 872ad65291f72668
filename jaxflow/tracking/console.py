"""The run in front of a person: one live line on a terminal, plain lines anywhere else.

Knows nothing of models or algorithms; it is told stages, metrics and samples. Output that fails (a closed
pipe, a lost terminal, a full disk behind a redirect) is dropped: it never ends a run.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TextIO

import rich.box
import rich.console
import rich.live
import rich.table
from rich.text import Text

from jaxflow.tracking.progress import Progress
from jaxflow.tracking.samples import sanitise, shorten
from jaxflow.tracking.text import figure
from jaxflow.types import Metrics, Sample

_REFRESH_SECONDS = 0.5
_PLAIN_COLUMNS = 110
_CELL_CHARACTERS = 300  # of a prompt or response in a table


class Console:
    """Tells what a run does, while it does it.

    Args:
        total_steps: steps of the run.
        live: one live line at the bottom of a terminal; None: where standard output is a terminal.
        file: where to write; None: standard output.
    """

    def __init__(self, total_steps: int, live: bool | None = None, file: TextIO | None = None):
        output = _Output(sys.stdout if file is None else file)
        if live is None:
            live = output.isatty() and os.environ.get("TERM") != "dumb"
        self._progress = Progress(total_steps)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._current_stage: Callable[[], str | None] | None = None
        self._seen_stage: str | None = None
        self._rich = rich.console.Console(
            file=output,
            force_terminal=live,
            force_jupyter=False,
            color_system="auto" if live else None,
            width=None if live else _PLAIN_COLUMNS,
            highlight=False,
        )
        self._live: rich.live.Live | None = None
        if live:
            # Stray prints of libraries are taken over and appear above the line instead of through it;
            # errors that go to a file stay there.
            self._live = rich.live.Live(
                console=self._rich,
                get_renderable=self._line,
                auto_refresh=False,
                transient=True,
                redirect_stderr=_Output(sys.stderr).isatty(),
            )
            self._live.start()
        atexit.register(self.close)  # an exception on its way out must not leave the cursor hidden
        self._thread = threading.Thread(target=self._keep_fresh, name="console", daemon=True)
        self._thread.start()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def watch(self, current_stage: Callable[[], str | None]) -> None:
        """Asks `current_stage` for the stage from now on, about twice a second, in another thread."""
        self._current_stage = current_stage

    def begin(self, steps_done: int) -> None:
        """Sets the steps that a resumed run has behind it."""
        with self._lock:
            self._progress.begin(steps_done)

    def stage(self, name: str | None) -> None:
        """Says what runs now, by its name in `timing_s/*`; None: nothing worth naming."""
        with self._lock:
            self._progress.enter(name, time.monotonic())

    def banner(self, lines: Iterable[str]) -> None:
        """Prints what the run is, before it starts."""
        self._print_lines(lines, "bold")

    def note(self, text: str) -> None:
        """Prints a remark."""
        self._print_lines(text.split("\n"), "")

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self._print_lines(f"warning: {text}".split("\n"), "yellow")

    def step(self, step: int, metrics: Metrics, seconds: float) -> None:
        """Reports a finished step: in the live line, or as a line of its own."""
        with self._lock:
            line = self._progress.finish_step(step, metrics, seconds)
        if self._live is None:
            self._print_lines([line], "")

    def evaluation(self, step: int, metrics: Metrics, samples: Sequence[Sample]) -> None:
        """Prints the `val-core/` metrics and a table of the given samples."""
        figures = " · ".join(
            f"{name.removeprefix('val-core/').removesuffix('/mean@1')} {figure(metrics[name])}"
            for name in sorted(metrics)
            if name.startswith("val-core/")
        )
        self._print_lines([f"validation at step {step}: {figures}"], "bold")
        if samples:
            self._rich.print(_samples_table(samples))

    def done(self, summary: Iterable[str]) -> None:
        """Takes the live line away and prints the summary."""
        self.close()
        self._print_lines(summary, "")

    def close(self) -> None:
        """Ends the refreshing and gives the terminal back; what is printed later is plain lines."""
        if self._closed.is_set():
            return
        self._closed.set()
        atexit.unregister(self.close)
        # Bounded: closing may interrupt the very code that holds the lock the thread waits for.
        self._thread.join(timeout=4 * _REFRESH_SECONDS)
        if self._live is not None:
            self._live.stop()

    def _keep_fresh(self) -> None:
        while not self._closed.wait(_REFRESH_SECONDS):
            self._refresh()

    def _refresh(self) -> None:
        if self._current_stage is not None:
            stage = self._current_stage()
            if stage != self._seen_stage:
                self._seen_stage = stage
                self.stage(stage)
        if self._live is not None:
            self._live.refresh()
            return
        with self._lock:
            heartbeat = self._progress.heartbeat(time.monotonic())
        if heartbeat is not None:
            self._print_lines([heartbeat], "")

    def _line(self) -> Text:
        with self._lock:
            line = self._progress.live_line(time.monotonic())
        return Text(sanitise(line), style="cyan", no_wrap=True, overflow="ellipsis")

    def _print_lines(self, lines: Iterable[str], style: str) -> None:
        for line in lines:
            self._rich.print(Text(sanitise(line), style=style), soft_wrap=True)


def _samples_table(samples: Sequence[Sample]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.ASCII, show_lines=True)
    for column in ("prompt", "response", "ground truth"):
        table.add_column(column, overflow="fold")
    table.add_column("score", justify="right")
    for sample in samples:
        response = _cell(sample.response)
        if not sample.finished:
            response.append(" (cut at the length limit)", style="dim")
        score = Text(figure(sample.score))
        table.add_row(_cell(sample.prompt), response, _cell(sample.ground_truth), score)
    return table


def _cell(text: str) -> Text:
    return Text(shorten(sanitise(text), _CELL_CHARACTERS))


class _Output:
    """A stream that never raises: text that cannot be written is dropped."""

    def __init__(self, file: TextIO | None):
        self._file = file  # None: the process was started with its output closed
        self.encoding = "utf-8" if file is None else file.encoding

    def write(self, text: str) -> int:
        try:
            if self._file is not None:
                self._file.write(text)
        except UnicodeEncodeError:
            self.write(text.encode(self.encoding, "replace").decode(self.encoding))
        except BrokenPipeError:
            self._abandon()
        except (OSError, ValueError):  # ValueError: the stream is closed
            pass
        return len(text)

    def flush(self) -> None:
        try:
            if self._file is not None:
                self._file.flush()
        except BrokenPipeError:
            self._abandon()
        except (OSError, ValueError):
            pass

    def isatty(self) -> bool:
        try:
            return self._file is not None and self._file.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self._file is None:
            raise OSError("no output")
        return self._file.fileno()

    def _abandon(self) -> None:
        # Nobody reads any more. The buffered rest would make the interpreter's last flush fail and with it
        # the exit status of a run that went well, so the descriptor is pointed to nowhere.
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # not a descriptor's stream: nothing to redirect
            pass
