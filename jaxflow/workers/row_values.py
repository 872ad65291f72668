"""What may cross between processes, and how its rows are counted, cut and joined.

Rows are: NumPy arrays (dimension 0), tuples, and the dataclasses of `jaxflow.types` whose fields are such; a
field that is a plain number or text is shared by all rows. Everything else that may cross is plain: numbers,
text, None, mappings and lists of them. Knows no process and no protocol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxflow import types

_PLAIN = (str, bool, int, float, type(None))


def is_rows(value: Any) -> bool:
    """Return whether a value has rows to split."""
    return isinstance(value, np.ndarray | tuple) or dataclasses.is_dataclass(value)


def row_count(value: Any) -> int:
    """Count the rows of a value that has rows."""
    if isinstance(value, np.ndarray | tuple):
        return len(value)
    return max(len(part) for part in vars(value).values() if is_rows(part))


def take_rows(value: Any, start: int, stop: int) -> Any:
    """Return rows [start, stop); arrays are views."""
    if isinstance(value, np.ndarray | tuple):
        return value[start:stop]
    fields = vars(value)
    return type(value)(**{n: take_rows(v, start, stop) if is_rows(v) else v for n, v in fields.items()})


def join_rows(values: Sequence[Any]) -> Any:
    """Join values of one kind in the order given; positions [B, T] are padded with zeros to the longest T."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, tuple):
        return tuple(row for value in values for row in value)
    if isinstance(first, np.ndarray):
        return _stacked(values)
    columns = {name: [vars(value)[name] for value in values] for name in vars(first)}
    return type(first)(**{n: join_rows(c) if is_rows(c[0]) else c[0] for n, c in columns.items()})


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if arrays[0].ndim == 1:
        return np.concatenate(arrays)
    width = max(array.shape[1] for array in arrays)
    joined = np.zeros((sum(map(len, arrays)), width, *arrays[0].shape[2:]), arrays[0].dtype)
    start = 0
    for array in arrays:
        joined[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return joined


def byte_count(value: Any) -> int:
    """Count the bytes of a value: arrays by their buffers, text by its UTF-8, numbers by 8, row ranges by two.

    Raises TypeError for what may not cross: objects that are neither arrays nor plain values.
    """
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.nbytes
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass"))
    if isinstance(value, (_PLAIN, np.number)):
        return 8
    if isinstance(value, range):
        return 16
    if isinstance(value, Mapping):
        return sum(byte_count(key) + byte_count(item) for key, item in value.items())
    if isinstance(value, tuple | list):
        return sum(byte_count(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sum(byte_count(item) for item in vars(value).values())
    raise TypeError(
        f"a {type(value).__module__}.{type(value).__qualname__} may not cross between processes: "
        "pass NumPy arrays, dataclasses of them, or plain values"
    )


def token_count(values: Sequence[Any], ranges: Sequence[range]) -> int:
    """Count the tokens in these rows of the first value that knows its sequences; 0 where none does."""
    for value in values:
        if isinstance(value, types.Preferences):
            both = value.chosen_lengths + value.rejected_lengths
            return sum(int(np.sum(both[run.start : run.stop])) for run in ranges)
        if isinstance(value, types.Rollout | types.Experience | types.Demonstrations | types.Judgements):
            return sum(int(np.sum(value.lengths[run.start : run.stop])) for run in ranges)
    return 0
