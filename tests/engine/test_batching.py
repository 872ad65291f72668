"""Micro-batches hold every row once, keep the budget, and come in few shapes."""

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.batching import (
    LENGTH_UNIT,
    ladder,
    plan_blocks,
    plan_micro_batches,
    scatter,
    take,
)
from jaxflow.engine.rows import EMPTY, block


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 8), (1, 8), (8, 8), (9, 16), (17, 24), (25, 32), (33, 48), (49, 64), (65, 96)]
)
def test_the_ladder_s_rungs_are_one_two_three_four_six_eight_twelve(size, expected):
    assert ladder(size, 8) == expected


@pytest.mark.parametrize("unit", [1, 3, 8])
def test_the_ladder_never_rounds_down_and_wastes_at_most_half_of_what_is_asked(unit):
    for size in range(1, 500):
        rung = ladder(size, unit)
        assert rung >= size and rung % unit == 0
        assert rung == unit or rung <= 1.5 * (size + unit - 1)
        assert ladder(rung, unit) == rung


def real(rows):
    return rows[rows != EMPTY].tolist()


def tokens_per_device(plan):
    return sum(micro.rows.shape[1] * micro.padded_length for micro in plan)


@pytest.mark.parametrize("case", range(60))
def test_every_row_is_planned_once_within_the_budget_and_in_its_own_block(case):
    generator = np.random.default_rng(case)
    replicas = int(generator.choice([1, 2, 3, 8]))
    lengths = generator.integers(1, int(generator.choice([9, 40, 700])), int(generator.integers(1, 300)))
    longest = ladder(int(lengths.max()), LENGTH_UNIT)
    budget = longest * int(generator.integers(1, 20)) + int(generator.integers(0, longest))
    plan = plan_micro_batches(lengths, budget, replicas)
    for index in range(replicas):
        rows = [row for micro in plan for row in real(micro.rows[index])]
        assert sorted(rows) == list(range(len(lengths)))[block(len(lengths), replicas, index)]
        assert (np.diff(lengths[rows]) <= 0).all()
    for micro in plan:
        assert lengths[real(micro.rows)].max() <= micro.padded_length
        assert micro.rows.shape[1] * micro.padded_length <= budget


def test_blocks_may_be_any_rows_and_empty():
    lengths = np.array([3, 30, 5, 1, 20])
    plan = plan_blocks(lengths, [np.array([1, 3]), np.array([], np.int64), np.array([0, 2])], 64)
    assert [(micro.rows.tolist(), micro.padded_length) for micro in plan] == [
        ([[1], [EMPTY], [2]], 32),
        ([[3], [EMPTY], [0]], 8),
    ]


def test_a_plan_is_a_function_of_the_lengths_alone():
    lengths = np.random.default_rng(0).integers(1, 100, 64)
    plans = [plan_micro_batches(given, 512, 2) for given in (lengths, list(map(int, lengths)))]
    one, other = ([(micro.rows.tolist(), micro.padded_length) for micro in plan] for plan in plans)
    assert one == other


def test_a_large_batch_of_many_lengths_needs_few_shapes_and_little_padding():
    lengths = np.random.default_rng(0).integers(16, 1024, 2048)
    plan = plan_micro_batches(lengths, 16384, 4)
    assert len({(micro.rows.shape, micro.padded_length) for micro in plan}) <= 12
    assert 4 * tokens_per_device(plan) < 1.35 * lengths.sum()


def test_plans_of_a_step_like_the_last_one_reuse_its_shapes():
    def shapes(seed):
        lengths = np.random.default_rng(seed).integers(16, 1024, 2048)
        plan = plan_micro_batches(lengths, 16384, 4)
        return {(micro.rows.shape, micro.padded_length) for micro in plan}

    first = shapes(0)
    later = set().union(*(shapes(seed) for seed in range(1, 20)))
    assert len(first | later) <= 3 * len(first)


def test_a_row_that_exceeds_the_budget_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="48 padded tokens exceeds the micro-batch budget of 47 tokens"):
        plan_micro_batches([5, 41, 3], 47, 1)


def test_no_rows_need_no_micro_batch():
    assert plan_micro_batches([], 64, 2) == []


def test_taken_rows_are_padded_with_empty_rows():
    batch = tiny.experience()
    rows = np.array([4, EMPTY, 0])
    part = take(batch, rows, 40)
    assert part.tokens.shape == (3, 40)
    np.testing.assert_array_equal(part.tokens[2], np.pad(batch.tokens[0], (0, 8)))
    np.testing.assert_array_equal(take(batch, rows, 16).values[0], batch.values[4, :16])
    assert not part.response_mask[1].any() and part.lengths.tolist() == [
        batch.lengths[4],
        0,
        batch.lengths[0],
    ]
    assert jax.tree.map(lambda leaf: leaf.dtype, part) == jax.tree.map(lambda leaf: leaf.dtype, batch)


def test_what_is_taken_apart_is_scattered_back_to_its_rows():
    batch = tiny.experience(rows=21)
    plan = plan_micro_batches(batch.lengths, 96, 2)
    assert len(plan) > 3
    rows = [micro.rows.reshape(-1) for micro in plan]
    parts = [(r, take(batch, r, m.padded_length)) for r, m in zip(rows, plan, strict=True)]
    joined = scatter(parts, batch.tokens.shape)
    for name, leaf in vars(batch).items():
        np.testing.assert_array_equal(vars(joined)[name], leaf, strict=True)


def test_what_nothing_was_computed_for_is_zero():
    part = np.ones((2, 8), np.float32)
    result = scatter([(np.array([1, EMPTY]), part)], (2, 12))
    np.testing.assert_array_equal(result, np.outer([0, 1], np.arange(12) < 8))
    assert result.dtype == np.float32
