"""Every row runs once, shares its prompt's prefill, and no slot idles while its replica has rows that wait."""

import numpy as np
import pytest

from jaxflow.engine.rows import EMPTY, block
from jaxflow.engine.schedule import Schedule, prompts_at_once
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
    schedule = Schedule(lengths, limits, repeats, blocks, slots, prefill_tokens)
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
        occupied = schedule.occupied
        for replica, waits in enumerate(schedule.waiting):
            assert waits == 0 or (occupied[replica] != EMPTY).all(), "nobody waits beside a free slot"
        rows = occupied.reshape(-1)
        here = rows != EMPTY
        counts = np.where(here, np.minimum(left[rows], chunk), 0)
        left[rows[here]] -= counts[here]
        running = here & (left[rows] > 0)
        schedule.record(Progress(counts, running, here & ~running & (wanted[rows] < LIMIT)))
        chunks += 1
    np.testing.assert_array_equal(schedule.drawn, wanted)
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
    schedule = Schedule(*np.array([[3, 3, 9, 9, 3], [5] * 5, [0, 1, 0, 1, 0]], np.int32), 1, 8, 64)
    preparation, admission = schedule.prepare(), schedule.admit()
    assert preparation.rows.tolist() == [[2, 0, 4, EMPTY]] and preparation.padded_length == 16
    assert admission.rows.tolist() == [[2, 3, 0, 1, 4, EMPTY]]


def test_replicas_prepare_together_what_each_has_room_for():
    # One replica's rows end at once and it runs out of prepared prompts; the other has one place free.
    lengths = np.full(16, 8, np.int32)
    schedule = Schedule(lengths, np.full(16, 9, np.int32), np.zeros(16, np.int32), 2, 2, 16)
    assert schedule.places == 2
    assert schedule.prepare().rows.tolist() == [[0, 1], [8, 9]]
    schedule.admit()
    one, none = np.array([True, False, False, False]), np.zeros(4, bool)
    schedule.record(Progress(np.ones(4, np.int32), one, ~one))
    assert schedule.prepare().rows.tolist() == [[2, 3], [10, 11]]
    schedule.admit()
    schedule.record(Progress(np.ones(4, np.int32), np.array([True, True, False, False]), none))
    assert schedule.prepare().rows.tolist() == [[4, EMPTY], [12, 13]]


def test_prompts_are_prepared_in_powers_of_two_and_one_at_least():
    assert [prompts_at_once(*asked) for asked in ((5, 8, 64), (100, 8, 64), (3, 128, 64))] == [8, 8, 1]
