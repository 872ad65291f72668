"""The rows of a call on the host: prompts cut into parts, answers as they grow, parts put together again.

Knows no device, no slot and no schedule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.course import Drawn
from jaxflow.types import Prompts, Rollout


class Answers:
    """This process's rows as they grow."""

    def __init__(self, prompts: Prompts, ends: np.ndarray, pad_id: int):
        """Begin with the prompts; `ends` says of each row the first position that it may not reach."""
        shape = (len(prompts.lengths), int(ends.max(initial=0)))
        column = np.arange(shape[1])[None, :]
        asked = prompts.tokens[:, : shape[1]]
        tokens = np.full(shape, pad_id, np.int32)
        tokens[:, : asked.shape[1]] = asked
        self._prompts, self._pad_id = prompts, pad_id
        self._tokens = np.where(column < prompts.lengths[:, None], tokens, pad_id)
        self._log_probs, self._behaviour = (np.zeros(shape, np.float32) for _ in range(2))

    def add(self, rows: np.ndarray, starts: np.ndarray, counts: np.ndarray, drawn: Drawn) -> None:
        """Write what each slot drew behind what its row has; `starts` says of every row where that is."""
        slot, nth = np.nonzero(np.arange(drawn.tokens.shape[1])[None, :] < counts[:, None])
        row = rows[slot]
        column = starts[row] + nth
        self._tokens[row, column] = drawn.tokens[slot, nth]
        self._log_probs[row, column] = drawn.log_probs[slot, nth]
        self._behaviour[row, column] = drawn.behaviour_log_probs[slot, nth]

    def rollout(
        self, drawn: np.ndarray, ended: np.ndarray, stopped: np.ndarray, policy_updates: int
    ) -> Rollout:
        """Return the rows, of which `drawn` says how many tokens each has, at one padded length."""
        prompts = self._prompts
        lengths = (prompts.lengths + drawn).astype(np.int32)
        width = ladder(int(lengths.max(initial=1)), LENGTH_UNIT)
        column = np.arange(width)[None, :]

        def padded(array: np.ndarray, with_: int) -> np.ndarray:
            cut = array[:, :width]
            return np.pad(cut, ((0, 0), (0, width - cut.shape[1])), constant_values=with_)

        return Rollout(
            tokens=padded(self._tokens, self._pad_id),
            lengths=lengths,
            response_mask=(column >= prompts.lengths[:, None]) & (column < lengths[:, None]),
            rollout_log_probs=padded(self._log_probs, 0),
            behaviour_log_probs=padded(self._behaviour, 0),
            finished=ended,
            groups=prompts.groups,
            policy_updates=np.full(len(lengths), policy_updates, np.int32),
            stopped=stopped,
        )


def part_of(prompts: Prompts, rows: slice) -> Prompts:
    """Return some of the prompts."""
    return dataclasses.replace(
        prompts,
        tokens=prompts.tokens[rows],
        lengths=prompts.lengths[rows],
        sequence_ids=prompts.sequence_ids[rows],
        own_seeds=prompts.own_seeds[rows],
        groups=prompts.groups[rows],
        rows=prompts.rows[rows],
    )


def joined(rollouts: Sequence[Rollout], pad_id: int) -> Rollout:
    """Return the rows of all rollouts at the widest one's length."""
    width = max(rollout.tokens.shape[1] for rollout in rollouts)

    def rows(*parts: np.ndarray, padding: int = 0) -> np.ndarray:
        wide = [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=padding)
            if part.ndim == 2
            else part
            for part in parts
        ]
        return np.concatenate(wide)

    if len(rollouts) == 1:
        return rollouts[0]
    tokens = rows(*(rollout.tokens for rollout in rollouts), padding=pad_id)
    return dataclasses.replace(jax.tree.map(rows, *rollouts), tokens=tokens)
