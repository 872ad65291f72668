"""Rows into micro-batches: few shapes, little padding, a token budget. Host arithmetic only, no device.

Every decision is a function of the lengths alone, so that all processes of a group take the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

import jax
import numpy as np

Batch = TypeVar("Batch")

LENGTH_UNIT = 8  # lengths are rounded to this at the least


def ladder(size: int, unit: int) -> int:
    """Round up to unit · {1, 2, 3, 4, 6, 8, 12, 16, …}: at most a third of padding, two shapes per doubling."""
    steps = max(1, -(-size // unit))
    power = 1 << (steps - 1).bit_length()
    three_quarters = power * 3 // 4
    return unit * (three_quarters if power >= 4 and steps <= three_quarters else power)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Which rows go through one compiled program, and at which padded shape."""

    rows: tuple[int, ...]  # indices into the batch; fewer than `padded_rows` where the last ones are empty
    padded_rows: int  # multiple of the data replicas
    padded_length: int


def plan_micro_batches(lengths: Sequence[int], tokens_per_device: int, replicas: int) -> list[MicroBatch]:
    """Sort rows by length and fill micro-batches up to `tokens_per_device` padded tokens on each device.

    A micro-batch closes when it is full, or when it is half full and the next row needs half its length or
    less: a smaller one would cost a program of its own and save little.
    Raises ValueError if a single row exceeds the budget of a device.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-int(lengths[row]), row))
    planned, start = [], 0
    while start < len(order):
        padded_length = ladder(int(lengths[order[start]]), LENGTH_UNIT)
        capacity = tokens_per_device // padded_length * replicas
        if capacity == 0:
            raise ValueError(
                f"a sequence of {padded_length} padded tokens exceeds the micro-batch budget of "
                f"{tokens_per_device} tokens per device"
            )
        end = start + 1
        while end < len(order) and end - start < capacity:
            next_length = ladder(int(lengths[order[end]]), LENGTH_UNIT)
            if 2 * (end - start) >= capacity and 2 * next_length <= padded_length:
                break
            end += 1
        padded_rows = min(capacity, ladder(end - start, replicas))
        planned.append(MicroBatch(tuple(order[start:end]), padded_rows, padded_length))
        start = end
    return planned


def take(batch: Batch, micro: MicroBatch) -> Batch:
    """Return these rows of a batch dataclass, padded to the micro-batch's shape with zeros (empty rows).

    Leaves are [B] or [B, T]; what lies behind `padded_length` is padding by construction and is cut.
    """
    rows = np.asarray(micro.rows, dtype=np.int64)

    def pick(leaf: np.ndarray) -> np.ndarray:
        leaf = np.asarray(leaf)
        shape = (micro.padded_rows, micro.padded_length)[: leaf.ndim]
        out = np.zeros(shape, leaf.dtype)
        if leaf.ndim == 1:
            out[: len(rows)] = leaf[rows]
        else:
            width = min(micro.padded_length, leaf.shape[1])
            out[: len(rows), :width] = leaf[rows, :width]
        return out

    return jax.tree.map(pick, batch)


def scatter(parts: Iterable[tuple[MicroBatch, np.ndarray]], shape: tuple[int, ...]) -> np.ndarray:
    """Put the results of micro-batches back into the rows' order; positions nothing was computed for are 0."""
    out = np.zeros(shape, np.float32)
    for micro, part in parts:
        rows = np.asarray(micro.rows, dtype=np.int64)
        if part.ndim == 1:
            out[rows] = part[: len(rows)]
        else:
            width = min(part.shape[1], shape[1])
            out[rows, :width] = part[: len(rows), :width]
    return out
