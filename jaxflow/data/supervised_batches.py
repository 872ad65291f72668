"""Rows that have their responses to padded batches, by step. Knows orders and padding; no files, devices or models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxflow.data.batches import answered, endless_batches
from jaxflow.data.supervised import DemonstrationRow, JudgedRow, PreferenceRow
from jaxflow.types import Demonstrations, Judgements, Preferences

SupervisedRow = DemonstrationRow | JudgedRow | PreferenceRow
SupervisedBatch = Demonstrations | Judgements | Preferences


class SupervisedBatches:
    """The batches of every step of a run, in any order of asking; all of one kind of rows."""

    def __init__(self, rows: Sequence[SupervisedRow], rows_per_step: int, shuffle: bool, seed: int) -> None:
        """Lay out the run's rows, over and over; with `shuffle` each epoch is a new permutation of them."""
        self._batches = endless_batches(rows, rows_per_step, shuffle, seed)
        self._width = _longest(rows)

    def at(self, step: int) -> SupervisedBatch:
        """Give the rows of `step` (from 0)."""
        return _batch(self._batches[step], self._width)


def held_out_batch(rows: Sequence[SupervisedRow]) -> SupervisedBatch:
    """Make one batch of all rows in their order."""
    return _batch(rows, _longest(rows))


def _longest(rows: Sequence[SupervisedRow]) -> int:
    return max(len(row.asked.tokens) + max(map(len, row.responses)) for row in rows)


def _batch(rows: Sequence[SupervisedRow], width: int) -> SupervisedBatch:
    """Put rows of one kind into arrays of this width."""
    pairs = [row for row in rows if isinstance(row, PreferenceRow)]
    judged = [row.wanted for row in rows if isinstance(row, JudgedRow)]
    sides = [
        answered([(row.asked.tokens, row.responses[side]) for row in rows], width)
        for side in range(len(rows[0].responses))
    ]
    if not pairs:
        tokens, lengths, response_mask = sides[0]
        if judged:
            return Judgements(tokens, lengths, response_mask, np.array(judged, np.float32))
        return Demonstrations(tokens=tokens, lengths=lengths, response_mask=response_mask)
    (tokens, lengths, mask), (others, other_lengths, other_mask) = sides

    def column(numbers: Sequence[float]) -> np.ndarray:
        return np.array(numbers, dtype=np.float32)

    return Preferences(
        tokens=np.stack([tokens, others], axis=1),
        chosen_lengths=lengths,
        rejected_lengths=other_lengths,
        response_mask=np.stack([mask, other_mask], axis=1),
        margins=column([row.margin for row in pairs]),
        chosen_harm=column([row.chosen_harm for row in pairs]),
        rejected_harm=column([row.rejected_harm for row in pairs]),
    )
