"""Rows into micro-batches: few shapes, little padding, a token budget. Host arithmetic only, no device.

Every decision is a function of the lengths alone, so that all processes of a group take the same one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np

from jaxflow.engine.rows import EMPTY, block

Batch = TypeVar("Batch")

LENGTH_UNIT = 8  # lengths are rounded to this at the least


def ladder(size: int, unit: int) -> int:
    """Round up to unit · {1, 2, 3, 4, 6, 8, 12, 16, …}: at most a third of padding, two shapes per doubling."""
    steps = max(1, -(-size // unit))
    power = 1 << (steps - 1).bit_length()
    three_quarters = power * 3 // 4
    return unit * (three_quarters if power >= 4 and steps <= three_quarters else power)


@dataclasses.dataclass(frozen=True, eq=False)
class MicroBatch:
    """Which rows go through one compiled program, and at which padded length."""

    rows: np.ndarray  # int64 [blocks, k]: indices into the whole batch, or EMPTY; every block gives k places
    padded_length: int


def plan_micro_batches(lengths: Sequence[int], tokens_per_device: int, replicas: int) -> list[MicroBatch]:
    """Plan a whole batch, its rows cut over `replicas`; see `plan_blocks`."""
    return plan_blocks(np.asarray(lengths), _whole(len(lengths), replicas), tokens_per_device)


def plan_blocks(
    lengths: np.ndarray, blocks: Sequence[np.ndarray], tokens_per_device: int
) -> list[MicroBatch]:
    """Fill micro-batches up to `tokens_per_device` padded tokens on each device, longest rows first.

    Every block of rows (indices into `lengths`) stays where it is: it sorts its own rows, and each micro-batch
    takes the next k of every block. One closes when it is full, or when it is half full and the next rows need
    half its length or less: a smaller one would cost a program of its own and save little.
    Raises ValueError if a single row exceeds the budget of a device.
    """
    table, longest = _longest_first(lengths, blocks)
    planned, start = [], 0
    while start < len(longest):
        padded_length = ladder(int(longest[start]), LENGTH_UNIT)
        capacity = tokens_per_device // padded_length
        if capacity == 0:
            raise ValueError(
                f"a sequence of {padded_length} padded tokens exceeds the micro-batch budget of "
                f"{tokens_per_device} tokens per device"
            )
        end = start + 1
        while end < len(longest) and end - start < capacity:
            next_length = ladder(int(longest[end]), LENGTH_UNIT)
            if 2 * (end - start) >= capacity and 2 * next_length <= padded_length:
                break
            end += 1
        planned.append(_micro_batch(table[:, start:end], padded_length, capacity))
        start = end
    return planned


def _whole(total: int, replicas: int) -> list[np.ndarray]:
    return [np.arange(total)[block(total, replicas, index)] for index in range(replicas)]


def _longest_first(lengths: np.ndarray, blocks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows [blocks, most] sorted by length within each block, and the longest length of each column."""
    table = np.full((len(blocks), max(map(len, blocks))), EMPTY, np.int64)
    for index, rows in enumerate(blocks):
        table[index, : len(rows)] = rows[np.argsort(-lengths[rows], kind="stable")]
    # EMPTY reads the zero at the end.
    return table, np.append(lengths, 0)[table].max(axis=0)


def _micro_batch(rows: np.ndarray, padded_length: int, capacity: int) -> MicroBatch:
    count = rows.shape[1]
    padding = min(capacity, ladder(count, 1)) - count
    return MicroBatch(np.pad(rows, ((0, 0), (0, padding)), constant_values=EMPTY), padded_length)


def sequences_per_row(tokens: np.ndarray) -> int:
    """Count the sequences that each row of tokens [b, T] or [b, N, T] holds: so many times a length it costs."""
    return int(np.prod(tokens.shape[1:-1], dtype=np.int64))


def take(batch: Batch, rows: np.ndarray, padded_length: int) -> Batch:
    """Return these rows (EMPTY: zeros) of a batch of [b] and [b, …, T] leaves, padded with zeros to one length.

    What lies behind `padded_length` is padding by construction and is cut.
    """
    real = rows != EMPTY

    def pick(leaf: np.ndarray) -> np.ndarray:
        leaf = np.asarray(leaf)
        if leaf.ndim == 1:
            out = np.zeros(len(rows), leaf.dtype)
            out[real] = leaf[rows[real]]
            return out
        out = np.zeros((len(rows), *leaf.shape[1:-1], padded_length), leaf.dtype)
        width = min(padded_length, leaf.shape[-1])
        out[real, ..., :width] = leaf[rows[real], ..., :width]
        return out

    return jax.tree.map(pick, batch)


def scatter(parts: Sequence[tuple[np.ndarray, Batch]], shape: tuple[int, ...]) -> Batch:
    """Put the results of (rows, trees of [k] and [k, …, T]) back into the rows' order, at one shape [b, …, T].

    Where nothing was computed there is 0.
    """

    def joined(*leaves: np.ndarray) -> np.ndarray:
        out = np.zeros(shape[:1] if leaves[0].ndim == 1 else shape, leaves[0].dtype)
        for (rows, _), leaf in zip(parts, leaves, strict=True):
            real = rows != EMPTY
            if leaf.ndim == 1:
                out[rows[real]] = leaf[real]
            else:
                width = min(leaf.shape[-1], shape[-1])
                out[rows[real], ..., :width] = leaf[real, ..., :width]
        return out

    return jax.tree.map(joined, *(part for _, part in parts))
