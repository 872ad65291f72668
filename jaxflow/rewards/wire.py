"""JSON values over a byte stream: four bytes of length, then the value. Nothing that arrives is ever executed.

Knows no message. Imports the standard library alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("!I")


class WireError(Exception):
    """What arrived is no value of the agreed form: too long, or not JSON."""


def pack(value: object) -> bytes:
    """Return a JSON value as one frame."""
    # Numbers that are not finite are Python's own, written and read by it alone.
    body = json.dumps(value).encode()
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Gathers bytes as they come and gives the values in them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes, limit_bytes: int) -> Iterator[object]:
        """Yield the values that are complete now.

        Raises:
          WireError: a value is longer than the limit, or is not JSON.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer, start)
                if size > limit_bytes:
                    raise WireError(f"a message of {size:,} bytes, the limit is {limit_bytes:,}")
                end = start + _LENGTH.size + size
                if len(self._buffer) < end:
                    return
                body, start = bytes(self._buffer[start + _LENGTH.size : end]), end
                try:
                    yield json.loads(body)
                except (ValueError, RecursionError) as error:
                    raise WireError(f"a message that is not JSON: {error}") from error
        finally:
            del self._buffer[:start]
