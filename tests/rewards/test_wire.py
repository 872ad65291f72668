import struct

import pytest

from jaxflow.rewards.wire import Unpacker, WireError, pack

VALUES = [{"a": [1, 2.5, None, "ü\ud800"]}, [], "x" * 1000, 7]


@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_values_arrive_however_the_stream_is_cut(size):
    stream = b"".join(map(pack, VALUES))
    unpacker, told = Unpacker(), []
    for start in range(0, len(stream), size):
        told += unpacker.feed(stream[start : start + size], 2000)
    assert told == VALUES


def test_what_is_too_long_is_refused_before_it_is_gathered():
    with pytest.raises(WireError, match="the limit is 10"):
        list(Unpacker().feed(struct.pack("!I", 2**31), 10))


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000, b"\x80\x04K\x01."])
def test_what_is_no_json_is_refused(body):
    with pytest.raises(WireError, match="not JSON"):
        list(Unpacker().feed(struct.pack("!I", len(body)) + body, 10**6))
