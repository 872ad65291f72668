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
    """One replica's queue, prepared prompts and slots, as far as is known."""

    def __init__(self, prompts: list[list[int]], slots: int, places: int):
        self.unprepared = collections.deque(prompts)
        self.queue = np.array([row for rows in prompts for row in rows], np.int64)
        self.origins = np.zeros(len(self.queue), np.int32)  # the place of each one's prompt
        self.ready = 0  # so many of the queue have their prompts prepared
        self.started = 0
        self.places = list(range(places - 1, -1, -1))  # free ones, the first at the end
        self.samples = [0] * places  # that have yet to start, of the prompt in each place
        self.slots = np.full(slots, EMPTY, np.int64)

    @property
    def waiting(self) -> int:
        return len(self.queue) - self.started

    @property
    def starved(self) -> bool:
        """Say whether it may run out of ready rows soon, and a good part of a prefill has room."""
        ready = self.ready - self.started
        room = 2 * len(self.places) >= len(self.samples)
        return len(self.unprepared) > 0 and (ready == 0 or (ready < len(self.slots) and room))

    @property
    def room(self) -> int:
        return min(len(self.places), len(self.unprepared))

    def prepare(self, count: int) -> list[tuple[int, int]]:
        """Give free places to so many of the next prompts at most: (one row of each, place)."""
        taken = []
        for _ in range(min(count, self.room)):
            rows, place = self.unprepared.popleft(), self.places.pop()
            self.samples[place] = len(rows)
            self.origins[self.ready : self.ready + len(rows)] = place
            self.ready += len(rows)
            taken.append((rows[0], place))
        return taken

    def start(self, numbers: np.ndarray) -> None:
        """Take note of who was seen in each slot."""
        new = np.flatnonzero(numbers >= self.started)
        self.slots[new] = self.queue[numbers[new]]
        self.started += len(new)
        for place in self.origins[numbers[new]].tolist():
            self.samples[place] -= 1
            if self.samples[place] == 0:
                self.places.append(place)

    def move(self, slots: int) -> np.ndarray:
        """Take so many slots, those that run at the front; return where each one comes from."""
        order = np.argsort(self.slots == EMPTY, kind="stable")[:slots]
        origins = np.where(self.slots[order] == EMPTY, EMPTY, order)
        self.slots = self.slots[order]
        return origins


class Schedule:
    """The course of one call: rows wait, run in a slot, and are done.

    Which of the prepared rows start is decided on the devices, the next ones wherever a slot is free; here it is seen
    when a chunk is read, which the next one need not wait for.
    """

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
        self._done = np.zeros(self.total, bool)
        self.slot_steps = 0  # tokens that all slots could have drawn so far
        self.prefill_tokens = 0  # padded ones of all prompts so far

    def _in_units(self, count: int) -> int:
        return -(-count // self._unit) * self._unit

    @property
    def waiting(self) -> np.ndarray:
        """Return how many rows of each replica have not been seen to start, int32 [blocks]."""
        return np.array([replica.waiting for replica in self._replicas], np.int32)

    @property
    def occupied(self) -> np.ndarray:
        """Return the row that was last seen running in each slot, int64 [blocks, slots], or EMPTY."""
        return np.stack([replica.slots for replica in self._replicas])

    @property
    def longest_left(self) -> int:
        """Return the tokens that the running row furthest from its limit may still draw; 0 where none runs."""
        rows = self.occupied
        rows = rows[rows != EMPTY]
        return int((self.ends - self.prompt_lengths - self.drawn)[rows].max(initial=0))

    @property
    def queue(self) -> np.ndarray:
        """Return each replica's rows in the order in which they take slots, int64 [blocks, Q], EMPTY at the end."""
        return self._in_queues([replica.queue for replica in self._replicas], EMPTY)

    @property
    def ready(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of each queued row's preparation [blocks, Q], and how many have one [blocks], int32."""
        origins = self._in_queues([replica.origins for replica in self._replicas], 0)
        counts = np.array([replica.ready for replica in self._replicas], np.int32)
        return origins.astype(np.int32), counts

    def _in_queues(self, of_replicas: list[np.ndarray], behind: int) -> np.ndarray:
        table = np.full((len(of_replicas), ladder(max(map(len, of_replicas)), 1)), behind, np.int64)
        for line, one in zip(table, of_replicas, strict=True):
            line[: len(one)] = one
        return table

    def prepare(self) -> Preparation | None:
        """Take the next prompts to prefill, if a replica may soon have a free slot and no prompt prepared for it.

        All replicas work in step: when one must, each fills places it has free. How many is a power of two; half as
        many rather than filled up, if there are more to come.
        """
        if not any(replica.starved for replica in self._replicas):
            return None
        most = max(replica.room for replica in self._replicas)
        count = 1 << (most - 1).bit_length()
        if count > most and any(len(replica.unprepared) > most for replica in self._replicas):
            count //= 2
        rows, places = _table([replica.prepare(count) for replica in self._replicas], count)
        longest = self.prompt_lengths[rows[rows != EMPTY]].max()
        width = min(ladder(int(longest), LENGTH_UNIT), self.width)
        self.prefill_tokens += rows.size * width
        return Preparation(rows, places.astype(np.int32), width)

    def resize(self, chunks: int) -> Size | None:
        """Say what slots the next chunk needs, with `chunks` under way that are not recorded; None: as they are.

        They grow to hold the longest sequence, those that may have started unseen among them. When nobody waits and
        half of each replica's are free, the others move together, if a sequence may run for longer than a chunk.
        """
        rows, ahead = np.flatnonzero(~self._done), (chunks + 1) * self._chunk_steps
        reach = np.minimum(self.prompt_lengths[rows] + self.drawn[rows] + ahead, self.ends[rows])
        positions = max(self.positions, capacity(int(reach.max(initial=0)), self._longest))
        slots = self.slots
        if not self.waiting.any() and self.longest_left >= ahead:
            running = max(int((replica.slots != EMPTY).sum()) for replica in self._replicas)
            while slots > self._fewest and 2 * running <= slots:
                slots = self._in_units(-(-slots // 2))
        if (slots, positions) == (self.slots, self.positions):
            return None
        if slots < self.slots:
            origins = np.stack([replica.move(slots) for replica in self._replicas])
        else:  # whoever has started unseen stays where it is
            origins = np.tile(np.arange(slots), (len(self._replicas), 1))
        self.slots, self.positions = slots, positions
        return Size(origins.astype(np.int32), positions)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows, int64 [blocks, slots], or EMPTY, that have these numbers in their replicas' queues."""
        rows = np.take_along_axis(self.queue, np.maximum(numbers, 0), axis=1)
        return np.where(numbers == EMPTY, EMPTY, rows)

    def record(self, progress: Progress) -> None:
        """Take note of how far a chunk came; slots of rows that are done are free."""
        numbers = progress.numbers.reshape(len(self._replicas), -1)
        rows = self.rows_of(numbers).reshape(-1)
        here = rows != EMPTY
        self.slot_steps += int(progress.counts.max()) * len(rows)
        self.drawn[rows[here]] += progress.counts[here]
        self.ended[rows[here]] = progress.ended[here]
        self._done[rows[here & ~progress.running]] = True
        for replica, of_replica in zip(self._replicas, numbers, strict=True):
            replica.start(of_replica)
            replica.slots[self._done[replica.slots] & (replica.slots != EMPTY)] = EMPTY


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
