import errno
import math
import struct

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxflow.tracking.tensorboard import TensorBoard


def read_events(directory):
    """Reads the records of every event file: length, checksum, event, checksum."""
    events = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert len(data) >= length + 16, "a record is cut"
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[length + 16 :]
    return events


def scalars(events):
    return [(event.step, {v.tag: v.simple_value for v in event.summary.value}) for event in events]


def test_scalars_are_on_the_disk_when_write_returns(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    board.write(3, {"actor/pg_loss": 0.5, "critic/score/mean": math.inf})
    assert scalars(read_events(tmp_path / "tensorboard"))[1:] == [
        (3, {"actor/pg_loss": 0.5, "critic/score/mean": math.inf})
    ]


def test_a_resumed_run_hides_the_later_steps_of_the_killed_one(tmp_path):
    killed, resumed = TensorBoard(tmp_path), TensorBoard(tmp_path)
    killed.write(5, {"x": 1.0})
    resumed.truncate_after(4)
    resumed.write(5, {"x": 2.0})
    starts = [e for e in read_events(tmp_path) if e.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [5]


def test_a_failed_write_is_raised_and_the_next_one_starts_a_new_file(tmp_path, monkeypatch):
    board = TensorBoard(tmp_path)
    board.write(1, {"x": 1.0})

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventsWriter, "flush", full)
    with pytest.raises(OSError, match="No space"):
        board.write(2, {"x": 2.0})
    monkeypatch.undo()
    board.write(3, {"x": 3.0})
    board.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert (3, {"x": 3.0}) in scalars(read_events(tmp_path))
