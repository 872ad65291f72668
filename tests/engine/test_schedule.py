"""Every row runs once, shares its prompt's prefill, and no slot idles while its replica has rows that wait."""

import numpy as np
import pytest

from jaxflow.engine.rows import EMPTY, block
from jaxflow.engine.schedule import Schedule, capacity, prompts_at_once
from jaxflow.engine.slots import Progress

LIMIT = 40


def course(prompts, samples, blocks, slots, prefill_tokens=64, chunk=8, seed=0):
    """Run a schedule with answers of random lengths; return what happened, having looked at every decision."""
    generator = np.random.default_rng(seed)
    lengths = np.repeat(generator.integers(1, 30, prompts), samples).astype(np.int32)
    repeats = np.tile(np.arange(samples) > 0, prompts).astype(np.int32)
    total = prompts * samples
    wanted = np.minimum(generator.geometric(0.1, total), LIMIT)
    limits = np.full(total, LIMIT, np.int32)
    schedule = Schedule(lengths, limits, repeats, blocks, slots, prefill_tokens, chunk)
    prepared = np.full((blocks, schedule.places), EMPTY)
    prefills, started, chunks, left = [], [], 0, wanted.copy()
    while schedule.waiting.any() or schedule.longest_left > 0:
        while True:
            preparation, admission = schedule.prepare(), schedule.admit()
            if preparation is not None:
                real = preparation.rows != EMPTY
                assert lengths[preparation.rows[real]].max() <= preparation.padded_length
                assert real.shape[1] == 1 or real.shape[1] * preparation.padded_length <= prefill_tokens
                for replica, place in np.argwhere(real):
                    prepared[replica, preparation.places[replica, place]] = preparation.rows[replica, place]
                prefills.extend(preparation.rows[real].tolist())
            if admission is not None:
                for replica, place in np.argwhere(admission.rows != EMPTY):
                    row = admission.rows[replica, place]
                    rows = np.arange(total)[block(total, blocks, replica)]
                    assert row in rows, "rows stay in their block"
                    # The preparation it starts from is of its own prompt, and still there.
                    of = prepared[replica, admission.origins[replica, place]]
                    assert of // samples == row // samples
                    started.append(int(row))
            if preparation is None and admission is None:
                break
        before = schedule.occupied
        size = schedule.resize(0)
        occupied = schedule.occupied
        if size is not None:
            assert occupied.shape == size.origins.shape
            moved = np.take_along_axis(before, np.maximum(size.origins, 0), axis=1)
            np.testing.assert_array_equal(occupied, np.where(size.origins == EMPTY, EMPTY, moved))
            # Those that run are all there, and stand at the front.
            assert (np.sort(before[before != EMPTY]) == np.sort(occupied[occupied != EMPTY])).all()
            assert (np.diff((size.origins == EMPTY).astype(int), axis=1) >= 0).all()
        for replica, waits in enumerate(schedule.waiting):
            assert waits == 0 or (occupied[replica] != EMPTY).all(), "nobody waits beside a free slot"
        rows = occupied.reshape(-1)
        here = rows != EMPTY
        counts = np.where(here, np.minimum(left[rows], chunk), 0)
        left[rows[here]] -= counts[here]
        running = here & (left[rows] > 0)
        schedule.record(occupied, Progress(counts, running, here & ~running & (wanted[rows] < LIMIT)))
        chunks += 1
    np.testing.assert_array_equal(schedule.drawn, wanted)
    assert schedule.slot_steps >= wanted.sum() and schedule.prefill_tokens >= lengths[::samples].sum()
    np.testing.assert_array_equal(schedule.ended, wanted < LIMIT)
    return prefills, started, chunks, wanted


@pytest.mark.parametrize(
    ("prompts", "samples", "blocks", "slots"),
    [(1, 1, 1, 1), (13, 4, 1, 6), (24, 1, 4, 3), (9, 3, 4, 2), (16, 8, 2, 64), (3, 2, 8, 5)],
)
def test_every_row_runs_once_and_every_prompt_is_prepared_once_for_its_replica(
    prompts, samples, blocks, slots
):
    prefills, started, _, _ = course(prompts, samples, blocks, slots)
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


def test_the_longest_prompts_start_first_and_samples_of_a_prompt_together():
    schedule = Schedule(*np.array([[3, 3, 9, 9, 3], [5] * 5, [0, 1, 0, 1, 0]], np.int32), 1, 8, 64, 4)
    preparation, admission = schedule.prepare(), schedule.admit()
    assert preparation.rows.tolist() == [[2, 0, 4, EMPTY]] and preparation.padded_length == 16
    assert admission.rows.tolist() == [[2, 3, 0, 1, 4, EMPTY]]


def test_replicas_prepare_together_what_each_has_room_for():
    # One replica's rows end at once and it runs out of prepared prompts; the other has one place free.
    lengths = np.full(16, 8, np.int32)
    schedule = Schedule(lengths, np.full(16, 9, np.int32), np.zeros(16, np.int32), 2, 2, 16, 4)
    assert schedule.places == 2
    assert schedule.prepare().rows.tolist() == [[0, 1], [8, 9]]
    schedule.admit()
    one, none = np.array([True, False, False, False]), np.zeros(4, bool)
    schedule.record(schedule.occupied, Progress(np.ones(4, np.int32), one, ~one))
    assert schedule.prepare().rows.tolist() == [[2, 3], [10, 11]]
    schedule.admit()
    schedule.record(
        schedule.occupied, Progress(np.ones(4, np.int32), np.array([True, True, False, False]), none)
    )
    assert schedule.prepare().rows.tolist() == [[4, EMPTY], [12, 13]]


def test_prompts_are_prepared_in_powers_of_two_and_one_at_least():
    assert [prompts_at_once(*asked) for asked in ((5, 8, 64), (100, 8, 64), (3, 128, 64))] == [8, 8, 1]


def test_a_cache_grows_in_few_sizes_and_ends_at_what_the_longest_needs():
    assert [capacity(reach, 20) for reach in (3, 20)] == [20, 20]
    assert sorted({capacity(reach, 1000) for reach in range(1, 1001)}) == [256, 512, 1024]
    assert sorted({capacity(reach, 2100) for reach in range(1, 2101)}) == [256, 512, 1024, 2176]


def test_as_the_last_sequences_run_on_they_move_together_and_the_cache_grows_with_them():
    schedule = Schedule(*np.array([[9] * 16, [900] * 16, [0] * 16], np.int32), 2, 8, 64, 100)
    while schedule.waiting.any():
        schedule.prepare()
        schedule.admit()
    assert schedule.resize(0) is None and (schedule.slots, schedule.positions) == (8, 256)
    runs = np.zeros(16, bool)
    runs[[3, 6, 15]] = True
    rows = schedule.occupied
    schedule.record(rows, Progress(np.full(16, 100, np.int32), runs, ~runs))
    size = schedule.resize(1)
    assert size.origins.tolist() == [[3, 6], [7, EMPTY]] and size.positions == 512
    assert schedule.occupied.tolist() == [[3, 6], [15, EMPTY]]
    # What was under way before they moved is still told of the rows it ran.
    schedule.record(rows, Progress(np.where(runs, 50, 0), runs & (np.arange(16) != 6), ~runs))
    assert schedule.occupied.tolist() == [[3, EMPTY], [15, EMPTY]]
    assert schedule.drawn[[3, 6, 15]].tolist() == [150] * 3
