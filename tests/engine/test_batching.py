"""Micro-batches hold every row once, keep the budget, and come in few shapes."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.batching import LENGTH_UNIT, ladder, plan_micro_batches, scatter, take


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


@pytest.mark.parametrize("case", range(60))
def test_every_row_is_planned_once_and_within_the_budget(case):
    generator = np.random.default_rng(case)
    replicas = int(generator.choice([1, 2, 3, 8]))
    lengths = generator.integers(1, int(generator.choice([9, 40, 700])), int(generator.integers(1, 300)))
    longest = ladder(int(lengths.max()), LENGTH_UNIT)
    budget = longest * int(generator.integers(1, 20)) + int(generator.integers(0, longest))
    plan = plan_micro_batches(lengths, budget, replicas)
    assert sorted(row for micro in plan for row in micro.rows) == list(range(len(lengths)))
    for micro in plan:
        assert lengths[list(micro.rows)].max() <= micro.padded_length
        assert len(micro.rows) <= micro.padded_rows and micro.padded_rows % replicas == 0
        assert micro.padded_rows // replicas * micro.padded_length <= budget


def test_a_plan_is_a_function_of_the_lengths_alone():
    lengths = np.random.default_rng(0).integers(1, 100, 64)
    assert plan_micro_batches(lengths, 512, 2) == plan_micro_batches(list(map(int, lengths)), 512, 2)


def test_a_large_batch_of_many_lengths_needs_few_shapes_and_little_padding():
    lengths = np.random.default_rng(0).integers(16, 1024, 2048)
    plan = plan_micro_batches(lengths, 16384, 4)
    assert len({(micro.padded_rows, micro.padded_length) for micro in plan}) <= 12
    assert sum(micro.padded_rows * micro.padded_length for micro in plan) < 1.35 * lengths.sum()


def test_plans_of_a_step_like_the_last_one_reuse_its_shapes():
    def shapes(seed):
        lengths = np.random.default_rng(seed).integers(16, 1024, 2048)
        return {(micro.padded_rows, micro.padded_length) for micro in plan_micro_batches(lengths, 16384, 4)}

    first = shapes(0)
    later = set().union(*(shapes(seed) for seed in range(1, 20)))
    assert len(first | later) <= 2 * len(first)


def test_a_row_that_exceeds_the_budget_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="48 padded tokens exceeds the micro-batch budget of 47 tokens"):
        plan_micro_batches([5, 41, 3], 47, 1)


def test_no_rows_need_no_micro_batch():
    assert plan_micro_batches([], 64, 2) == []


def test_taken_rows_are_padded_with_empty_rows():
    batch = tiny.experience()
    micro = plan_micro_batches(batch.lengths, 64, 8)[0]
    part = take(batch, dataclasses.replace(micro, rows=micro.rows[:3]))
    assert part.tokens.shape == (micro.padded_rows, micro.padded_length)
    np.testing.assert_array_equal(
        part.tokens[1], np.pad(batch.tokens[micro.rows[1]], (0, 99))[: micro.padded_length]
    )
    assert not part.response_mask[3:].any() and (part.lengths[3:] == 0).all()
    assert {name: leaf.dtype for name, leaf in vars(part).items()} == {
        name: leaf.dtype for name, leaf in vars(batch).items()
    }


def test_what_is_taken_apart_is_scattered_back_to_its_rows():
    batch = tiny.experience(rows=21)
    plan = plan_micro_batches(batch.lengths, 96, 2)
    assert len(plan) > 3
    parts = [(micro, take(batch, micro)) for micro in plan]
    np.testing.assert_array_equal(
        scatter([(m, p.values) for m, p in parts], batch.values.shape), batch.values
    )
    np.testing.assert_array_equal(scatter([(m, p.lengths) for m, p in parts], (21,)), batch.lengths)


def test_what_nothing_was_computed_for_is_zero():
    micro = dataclasses.replace(plan_micro_batches([3, 3], 16, 1)[0], rows=(1,))
    part = np.ones((micro.padded_rows, micro.padded_length), np.float32)
    result = scatter([(micro, part)], (2, 12))
    np.testing.assert_array_equal(result, np.outer([0, 1], np.arange(12) < micro.padded_length))
    assert jax.tree.leaves(result)[0].dtype == np.float32
