"""Every row runs once, shares its prompt's prefill, and no slot idles while its replica has rows that wait."""

import numpy as np
import pytest

from jaxflow.engine.rows import EMPTY, block
from jaxflow.engine.schedule import Schedule, capacity, prompts_at_once
from jaxflow.engine.slots import Progress

LIMIT = 40


class Device:
    """What the programs do with slots: rows that are ready take the free ones, and draw tokens until they end."""

    def __init__(self, schedule, wanted, limit, chunk):
        self.schedule, self.left, self.ends_itself, self.chunk = (
            schedule,
            wanted.copy(),
            wanted < limit,
            chunk,
        )
        self.numbers = np.full(schedule.occupied.shape, EMPTY)
        self.taken, self.queued = np.zeros(len(self.numbers), np.int64), schedule.waiting

    def resize(self, size):
        moved = np.take_along_axis(self.numbers, np.maximum(size.origins, 0), axis=1)
        self.numbers = np.where(size.origins == EMPTY, EMPTY, moved)

    def rows(self):
        return self.schedule.rows_of(self.numbers)

    def start(self):
        """Return who starts: (replica, number)."""
        started = []
        _, ready = self.schedule.ready
        rows = self.rows()
        for replica, slot in np.argwhere((rows == EMPTY) | (self.left[rows] == 0)):
            if self.taken[replica] < ready[replica]:
                self.numbers[replica, slot] = self.taken[replica]
                started.append((replica, self.taken[replica]))
                self.taken[replica] += 1
        return started

    def run(self):
        """Draw a chunk of tokens; none while there are rows for slots that are free."""
        free = (self.rows() == EMPTY) | (self.left[self.rows()] == 0)
        for_them = self.queued > self.taken
        rows = self.rows().reshape(-1)
        here = (rows != EMPTY) & ~(free.any(axis=1) & for_them).any()
        counts = np.where(here, np.minimum(self.left[rows], self.chunk), 0)
        self.left[rows[here]] -= counts[here]
        running = (rows != EMPTY) & (self.left[rows] > 0)
        ended = (rows != EMPTY) & ~running & self.ends_itself[rows]
        return Progress(self.numbers.reshape(-1).copy(), counts, running, ended)


def course(prompts, samples, blocks, slots, prefill_tokens=64, chunk=8, seed=0, ahead=1):
    """Run a schedule with answers of random lengths, `ahead` chunks unread; look at every decision."""
    generator = np.random.default_rng(seed)
    lengths = np.repeat(generator.integers(1, 30, prompts), samples).astype(np.int32)
    repeats = np.tile(np.arange(samples) > 0, prompts).astype(np.int32)
    total = prompts * samples
    wanted = np.minimum(generator.geometric(0.1, total), LIMIT)
    limits = np.full(total, LIMIT, np.int32)
    schedule = Schedule(lengths, limits, repeats, blocks, slots, prefill_tokens, chunk)
    device = Device(schedule, wanted, LIMIT, chunk)
    prepared = np.full((blocks, schedule.places), EMPTY)
    prefills, started, flight, chunks = [], [], [], 0
    while schedule.waiting.any() or schedule.longest_left > len(flight) * chunk:
        while (preparation := schedule.prepare()) is not None:
            real = preparation.rows != EMPTY
            assert lengths[preparation.rows[real]].max() <= preparation.padded_length
            assert real.shape[1] == 1 or real.shape[1] * preparation.padded_length <= prefill_tokens
            for replica, place in np.argwhere(real):
                prepared[replica, preparation.places[replica, place]] = preparation.rows[replica, place]
            prefills.extend(preparation.rows[real].tolist())
        size = schedule.resize(len(flight))
        if size is not None:
            runs = device.rows()
            runs = runs[(runs != EMPTY) & (device.left[runs] > 0)]
            device.resize(size)
            # Those that run are all there, and stand at the front of fewer slots.
            assert np.isin(runs, device.rows()).all()
            if size.origins.shape[1] < slots:
                assert (np.diff((size.origins == EMPTY).astype(int), axis=1) >= 0).all()
        origins, _ = schedule.ready
        for replica, number in device.start():
            row = schedule.queue[replica, number]
            assert row in np.arange(total)[block(total, blocks, replica)], "rows stay in their block"
            # The preparation it starts from is of its own prompt, and still there.
            assert prepared[replica, origins[replica, number]] // samples == row // samples
            started.append(int(row))
        progress = device.run()
        chunks += progress.counts.any()
        flight.append(progress)
        while len(flight) > ahead:
            schedule.record(flight.pop(0))
    while flight:
        schedule.record(flight.pop(0))
    np.testing.assert_array_equal(schedule.drawn, wanted)
    assert schedule.slot_steps >= wanted.sum() and schedule.prefill_tokens >= lengths[::samples].sum()
    np.testing.assert_array_equal(schedule.ended, wanted < LIMIT)
    return prefills, started, chunks, wanted


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize(
    ("prompts", "samples", "blocks", "slots"),
    [(1, 1, 1, 1), (13, 4, 1, 6), (24, 1, 4, 3), (9, 3, 4, 2), (16, 8, 2, 64), (3, 2, 8, 5)],
)
def test_every_row_runs_once_and_every_prompt_is_prepared_once_for_its_replica(
    prompts, samples, blocks, slots, ahead
):
    prefills, started, _, _ = course(prompts, samples, blocks, slots, ahead=ahead)
    assert sorted(started) == list(range(prompts * samples))
    total = prompts * samples
    shares = [np.arange(total)[block(total, blocks, i)] // samples for i in range(blocks)]
    assert len(prefills) == sum(len(set(share.tolist())) for share in shares)


def test_no_slot_waits_for_longer_ones_beside_it():
    _, _, chunks, wanted = course(64, 1, 1, 8, chunk=1)
    # Of the last sequence to start, what ran before it filled all slots (Graham's bound for lists).
    assert chunks <= wanted.sum() / 8 + wanted.max()
    in_rounds = sum(np.sort(wanted)[start : start + 8].max() for start in range(0, 64, 8))
    assert chunks < wanted.reshape(8, 8).max(axis=1).sum() and chunks <= in_rounds + wanted.max()


def told(numbers, counts, running):
    """Return the progress of slots, of which nobody ended by itself."""
    return Progress(np.array(numbers), np.array(counts), np.array(running, bool), np.zeros(len(counts), bool))


def test_the_longest_prompts_start_first_and_samples_of_a_prompt_together():
    schedule = Schedule(*np.array([[3, 3, 9, 9, 3], [5] * 5, [0, 1, 0, 1, 0]], np.int32), 1, 8, 64, 4)
    preparation = schedule.prepare()
    assert preparation.rows.tolist() == [[2, 0, 4, EMPTY]] and preparation.padded_length == 16
    assert schedule.queue[0, :5].tolist() == [2, 3, 0, 1, 4]
    origins, counts = schedule.ready
    assert origins[0, :5].tolist() == [0, 0, 1, 1, 2] and counts.tolist() == [5]


def test_replicas_prepare_together_what_each_has_room_for():
    # One replica's rows end at once and it runs out of prepared prompts; the other has one place free.
    lengths = np.full(16, 8, np.int32)
    schedule = Schedule(lengths, np.full(16, 9, np.int32), np.zeros(16, np.int32), 2, 2, 16, 4)
    assert schedule.places == 2
    assert schedule.prepare().rows.tolist() == [[0, 1], [8, 9]]
    assert schedule.prepare() is None, "until they have been seen to start no place is free"
    schedule.record(told([0, 1, 0, 1], [1] * 4, [1, 0, 0, 0]))
    assert schedule.prepare().rows.tolist() == [[2, 3], [10, 11]]
    schedule.record(told([0, 2, 2, 3], [1] * 4, [1, 1, 0, 0]))
    assert schedule.prepare().rows.tolist() == [[4, EMPTY], [12, 13]]


def test_places_that_come_free_between_two_powers_of_two_are_not_filled_up_while_more_prompts_wait():
    rows = np.stack([np.full(20, 8), np.full(20, 9), np.zeros(20, int)]).astype(np.int32)
    schedule = Schedule(*rows, 1, 4, 64, 4)
    assert schedule.prepare().rows.shape == (1, 8) and schedule.prepare() is None
    schedule.record(told([0, 1, 2, 3], [1] * 4, [1] * 4))
    assert schedule.prepare() is None, "enough are ready"
    schedule.record(told([4, 5, 2, 3], [1] * 4, [0, 1, 1, 1]))
    assert schedule.prepare().rows.shape == (1, 4)
    schedule.record(told([6, 7, 8, 9], [1] * 4, [1] * 4))
    assert schedule.prepare().rows.shape == (1, 4)


def test_prompts_are_prepared_in_powers_of_two_and_one_at_least():
    assert [prompts_at_once(*asked) for asked in ((5, 8, 64), (100, 8, 64), (3, 128, 64))] == [8, 8, 1]


def test_a_cache_grows_in_few_sizes_and_ends_at_what_the_longest_needs():
    assert [capacity(reach, 20) for reach in (3, 20)] == [20, 20]
    assert sorted({capacity(reach, 1000) for reach in range(1, 1001)}) == [256, 512, 1024]
    assert sorted({capacity(reach, 2100) for reach in range(1, 2101)}) == [256, 512, 1024, 2176]


def test_as_the_last_sequences_run_on_they_move_together_and_the_cache_grows_with_them():
    schedule = Schedule(*np.array([[9] * 16, [900] * 16, [0] * 16], np.int32), 2, 8, 64, 100)
    while schedule.prepare() is not None:
        pass
    assert schedule.resize(0) is None and (schedule.slots, schedule.positions) == (8, 256)
    everyone = np.tile(np.arange(8), 2)
    schedule.record(told(everyone, [0] * 16, [1] * 16))
    while schedule.prepare() is not None:
        pass
    runs = np.zeros(16, bool)
    runs[[3, 6, 15]] = True
    schedule.record(told(everyone, [100] * 16, runs))
    size = schedule.resize(1)
    assert size.origins.tolist() == [[3, 6], [7, EMPTY]] and size.positions == 512
    assert schedule.occupied.tolist() == [[3, 6], [15, EMPTY]]
    # What was under way before they moved is still told of the rows it ran.
    schedule.record(told(everyone, np.where(runs, 50, 0), runs & (np.arange(16) != 6)))
    assert schedule.occupied.tolist() == [[3, EMPTY], [15, EMPTY]]
    assert schedule.drawn[[3, 6, 15]].tolist() == [150] * 3


def test_whoever_has_started_unseen_stays_where_it_is_as_the_cache_grows():
    schedule = Schedule(*np.array([[9] * 8, [900] * 8, [0] * 8], np.int32), 1, 2, 64, 100)
    schedule.prepare()
    schedule.record(told([0, 1], [100, 100], [1, 0]))
    size = schedule.resize(1)
    assert size.origins.tolist() == [[0, 1]] and size.positions == 512
