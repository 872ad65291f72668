"""Which sequence stands in which slot, and when its prompt is prepared. Host arithmetic only, no device.

Every decision is a function of numbers that all processes of a group have: the rows' lengths and limits, and how far
each chunk came. So all take the same one, and none asks another. A replica has its own block of rows, its own queue
and its own slots; nothing moves between them.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.decoding_kernel import BLOCK_POSITIONS
from jaxflow.engine.rows import EMPTY, block
from jaxflow.engine.slots import Progress

CAPACITY_UNIT = 256  # positions of the smallest cache that grows
_HALVINGS = 3  # of the slots, as the last sequences run on alone: each is a program of its own


@dataclasses.dataclass(frozen=True, eq=False)
class Preparation:
    """Prompts that go through one prefill, the same number for each replica."""

    rows: np.ndarray  # int64 [blocks, n]: a row with each prompt, or EMPTY
    # int32 [blocks, n]: where its keys and values are kept until all its samples have started
    places: np.ndarray
    padded_length: int


@dataclasses.dataclass(frozen=True, eq=False)
class Admission:
    """Rows that take slots, those of a replica at the front of its line."""

    rows: np.ndarray  # int64 [blocks, slots], or EMPTY
    slots: np.ndarray  # int32 [blocks, slots]: within the replica
    origins: np.ndarray  # int32 [blocks, slots]: the place of its prompt's preparation


@dataclasses.dataclass(frozen=True, eq=False)
class Size:
    """Slots in another number, or with room for longer sequences."""

    origins: np.ndarray  # int32 [blocks, slots]: the slot that each one's sequence comes from, or EMPTY
    positions: int


def prompts_at_once(prompts: int, width: int, prefill_tokens: int) -> int:
    """Return how many prompts of a padded width a replica prepares at once: all, or what a prefill may hold."""
    return max(1, min(1 << (prompts - 1).bit_length(), prefill_tokens // width))


def capacity(positions: int, longest: int) -> int:
    """Return how many positions a cache has for sequences that have come so far, of which none passes `longest`.

    Few sizes, each twice the one before, so that few programs are compiled; the last is `longest` itself.
    """
    size = CAPACITY_UNIT
    while size < positions:
        size *= 2
    return size if 4 * size < 3 * longest else rounded(longest)


def rounded(positions: int) -> int:
    """Round a cache's length up to what kernels divide among them, where it is long enough for them."""
    return positions if positions < CAPACITY_UNIT else -(-positions // BLOCK_POSITIONS) * BLOCK_POSITIONS


class _Replica:
    """One replica's queue, prepared prompts and slots."""

    def __init__(self, prompts: list[list[int]], slots: int, places: int):
        self.unprepared = collections.deque(prompts)
        self.ready: collections.deque[tuple[int, int]] = collections.deque()  # (row, place)
        self.waiting = sum(map(len, prompts))
        self.places = list(range(places - 1, -1, -1))  # free ones, the first at the end
        self.samples = [0] * places  # that have yet to start, of the prompt in each place
        self.slots = np.full(slots, EMPTY, np.int64)

    @property
    def starved(self) -> bool:
        return not self.ready and len(self.unprepared) > 0 and bool((self.slots == EMPTY).any())

    def prepare(self) -> list[tuple[int, int]]:
        """Give free places to the next prompts: (one row of each, place)."""
        taken = []
        while self.places and self.unprepared:
            rows, place = self.unprepared.popleft(), self.places.pop()
            self.samples[place] = len(rows)
            self.ready.extend((row, place) for row in rows)
            taken.append((rows[0], place))
        return taken

    def admit(self) -> list[tuple[int, int, int]]:
        """Give free slots to the next prepared rows: (row, slot, place)."""
        taken = []
        for slot in np.flatnonzero(self.slots == EMPTY).tolist():
            if not self.ready:
                break
            row, place = self.ready.popleft()
            self.slots[slot] = row
            self.samples[place] -= 1
            if self.samples[place] == 0:
                self.places.append(place)
            taken.append((row, slot, place))
        self.waiting -= len(taken)
        return taken

    def move(self, slots: int) -> np.ndarray:
        """Take so many slots, those that run at the front; return where each one comes from."""
        order = np.argsort(self.slots == EMPTY, kind="stable")[:slots]
        origins = np.where(self.slots[order] == EMPTY, EMPTY, order)
        self.slots = self.slots[order]
        return origins


class Schedule:
    """The course of one call: rows wait, run in a slot, and are done."""

    def __init__(
        self,
        prompt_lengths: np.ndarray,
        limits: np.ndarray,
        repeats: np.ndarray,
        blocks: int,
        slots: int,
        prefill_tokens: int,
        chunk_steps: int,
        unit: int = 1,
    ):
        """Queue every replica's rows, the longest prompts first, equal ones together.

        Args:
          prompt_lengths: [B], at least 1 each.
          limits: [B], response tokens that each row may have, at least 1.
          repeats: [B], 1 where a row's prompt is that of the row before it.
          blocks: replicas that the rows are cut over.
          slots: of each replica.
          prefill_tokens: padded tokens that one prefill of a replica may have, if it is not a single prompt.
          chunk_steps: tokens that a sequence may draw between two looks at who has finished.
          unit: slots come in multiples of it, and so do places of prepared prompts.
        """
        self.total = len(prompt_lengths)
        self.prompt_lengths, self.ends = prompt_lengths, prompt_lengths + limits
        cut = [block(self.total, blocks, index) for index in range(blocks)]
        grouped = [_prompts(range(self.total)[rows], prompt_lengths, repeats) for rows in cut]
        self.width = ladder(int(prompt_lengths.max()), LENGTH_UNIT)
        most = max(map(len, grouped))
        self._unit = unit
        self.places = self._in_units(prompts_at_once(most, self.width, prefill_tokens))
        self.slots = self._in_units(min(slots, ladder(max(rows.stop - rows.start for rows in cut), 1)))
        self._fewest = self._in_units(-(-self.slots // 2**_HALVINGS))
        self._longest = max(self.width, int(self.ends.max()))
        self.positions = capacity(min(self.width + chunk_steps, self._longest), self._longest)  # of a slot
        self._chunk_steps = chunk_steps
        self._replicas = [_Replica(prompts, self.slots, self.places) for prompts in grouped]
        self.drawn = np.zeros(self.total, np.int64)  # response tokens of each row
        self.ended = np.zeros(self.total, bool)  # by an end token
        self.slot_steps = 0  # tokens that all slots could have drawn so far
        self.prefill_tokens = 0  # padded ones of all prompts so far

    def _in_units(self, count: int) -> int:
        return -(-count // self._unit) * self._unit

    @property
    def waiting(self) -> np.ndarray:
        """Return how many rows of each replica have not started, int32 [blocks]."""
        return np.array([replica.waiting for replica in self._replicas], np.int32)

    @property
    def occupied(self) -> np.ndarray:
        """Return the row in each slot, int64 [blocks, slots], or EMPTY."""
        return np.stack([replica.slots for replica in self._replicas])

    @property
    def longest_left(self) -> int:
        """Return the tokens that the running row furthest from its limit may still draw; 0 where none runs."""
        rows = self.occupied
        rows = rows[rows != EMPTY]
        return int((self.ends - self.prompt_lengths - self.drawn)[rows].max(initial=0))

    def prepare(self) -> Preparation | None:
        """Take the next prompts to prefill, if a replica has a free slot and no prompt prepared for it.

        All replicas work in step: when one must, each fills all the places it has free.
        """
        if not any(replica.starved for replica in self._replicas):
            return None
        taken = [replica.prepare() for replica in self._replicas]
        count = 1 << (max(map(len, taken)) - 1).bit_length()
        rows, places = _table(taken, count)
        longest = self.prompt_lengths[rows[rows != EMPTY]].max()
        width = min(ladder(int(longest), LENGTH_UNIT), self.width)
        self.prefill_tokens += rows.size * width
        return Preparation(rows, places.astype(np.int32), width)

    def admit(self) -> Admission | None:
        """Give free slots to rows that wait and whose prompts are prepared, if there are both."""
        taken = [replica.admit() for replica in self._replicas]
        if not any(taken):
            return None
        rows, slots, origins = _table(taken, self.slots)
        return Admission(rows, slots.astype(np.int32), origins.astype(np.int32))

    def resize(self, chunks: int) -> Size | None:
        """Say what slots the next chunk needs, with `chunks` under way that are not recorded; None: as they are.

        They grow to hold the longest sequence. When nobody waits and half of each replica's are free, the others move
        together, if a sequence may run for longer than a chunk.
        """
        rows = self.occupied
        rows, ahead = rows[rows != EMPTY], (chunks + 1) * self._chunk_steps
        reach = np.minimum(self.prompt_lengths[rows] + self.drawn[rows] + ahead, self.ends[rows])
        positions = max(self.positions, capacity(int(reach.max(initial=0)), self._longest))
        slots = self.slots
        if not self.waiting.any() and self.longest_left >= ahead:
            running = max(int((replica.slots != EMPTY).sum()) for replica in self._replicas)
            while slots > self._fewest and 2 * running <= slots:
                slots = self._in_units(-(-slots // 2))
        if (slots, positions) == (self.slots, self.positions):
            return None
        origins = np.stack([replica.move(slots) for replica in self._replicas])
        self.slots, self.positions = slots, positions
        return Size(origins.astype(np.int32), positions)

    def record(self, rows: np.ndarray, progress: Progress) -> None:
        """Take note of how far a chunk came that ran `rows` [blocks, slots]; slots of rows that are done are free."""
        rows = rows.reshape(-1)
        here = rows != EMPTY
        self.slot_steps += int(progress.counts.max()) * len(rows)
        self.drawn[rows[here]] += progress.counts[here]
        self.ended[rows[here]] = progress.ended[here]
        done = rows[here & ~progress.running]
        for replica in self._replicas:
            replica.slots[np.isin(replica.slots, done)] = EMPTY


def _prompts(rows: range, lengths: np.ndarray, repeats: np.ndarray) -> list[list[int]]:
    """Return rows of equal prompts together, the longest prompts first."""
    prompts: list[list[int]] = []
    for row in rows:
        if prompts and repeats[row]:
            prompts[-1].append(row)
        else:
            prompts.append([row])
    return sorted(prompts, key=lambda rows: -lengths[rows[0]])


def _table(taken: list[list[tuple[int, ...]]], width: int) -> tuple[np.ndarray, ...]:
    """Return what every replica took as one array [blocks, width] per entry, EMPTY behind."""
    entries = len(next(one for one in taken if one)[0])
    table = np.full((len(taken), width, entries), EMPTY, np.int64)
    for replica, one in zip(table, taken, strict=True):
        if one:
            replica[: len(one)] = one
    return tuple(np.moveaxis(table, 2, 0))
