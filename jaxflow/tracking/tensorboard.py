"""TensorBoard event files.

Knows nothing of a run but its scalars. Writes in the calling thread: the threaded writer of tensorboardX dies
silently on a full disk and then blocks its caller for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class TensorBoard:
    """Event files of one directory. Raises OSError where the disk does, and starts a new file after that."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._writer: EventsWriter | None = None
        self._files = 0
        self._purge_step: int | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the scalars of one step, as one event."""
        values = Summary()
        for name, value in metrics.items():
            values.MergeFrom(summary.scalar(name, value))
        self._write(Event(step=step, summary=values))

    def truncate_after(self, step: int) -> None:
        """Hides what earlier processes wrote of later steps. To be called before the first write."""
        self._purge_step = step + 1

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _write(self, event: Event) -> None:
        try:
            if self._writer is None:
                self._writer = self._open()
            event.wall_time = time.time()
            self._writer.write_event(event)
            self._writer.flush()
        except OSError:
            # A record cut in two makes readers stop there: the next event opens another file.
            self._writer = None
            raise

    def _open(self) -> EventsWriter:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._files += 1
        # File names hold the second alone; process and number keep a quick restart from overwriting.
        writer = EventsWriter(str(self._directory / "events"), f".{os.getpid()}.{self._files}")
        if self._purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(step=self._purge_step, wall_time=time.time(), session_log=start))
            self._purge_step = None
        return writer
