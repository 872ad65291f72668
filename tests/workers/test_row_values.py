"""Cutting and joining what crosses between processes, and what may not cross."""

import dataclasses
import itertools
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import experience, prompts

from jaxflow.types import PromptRow
from jaxflow.workers.row_values import byte_count, join_rows, row_count, take_rows, token_count

CUTS = ((0, 13), (0, 4, 13), (0, 1, 2, 12, 13))


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(vars(a)[name], vars(b)[name]) for name in vars(a))
    return a == b


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(
    "batch", [experience(), prompts(), np.arange(26).reshape(13, 2), tuple("abcdefghijklm")]
)
def test_a_batch_cut_and_joined_is_the_same_batch(batch, cuts):
    assert row_count(batch) == 13
    pieces = [take_rows(batch, a, b) for a, b in itertools.pairwise(cuts)]
    assert [row_count(piece) for piece in pieces] == [b - a for a, b in itertools.pairwise(cuts)]
    assert same(join_rows(pieces), batch)


def test_cut_arrays_are_views_not_copies():
    batch = experience()
    assert np.shares_memory(take_rows(batch, 3, 9).tokens, batch.tokens)


def test_pieces_of_different_lengths_are_padded_with_zeros():
    joined = join_rows([np.ones((2, 3), np.float32), np.full((1, 5), 2, np.float32)])
    assert joined.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [2, 2, 2, 2, 2]]


def test_bytes_are_those_of_buffers_text_and_numbers():
    assert byte_count(np.zeros((3, 5), np.float32)) == 60
    assert byte_count({"ä": 1.0}) == 2 + 8
    row = PromptRow(
        prompt="abc", tokens=(1, 2), ground_truth="x", data_source="yz", extra_info={"k": [1, None]}
    )
    assert byte_count(row) == 3 + 16 + 1 + 2 + 1 + 16 + 8  # the last: its seed


@pytest.mark.parametrize(
    "value",
    [jnp.zeros(3), pathlib.Path("."), lambda: None, np.array([object()]), {"a": [pathlib.Path]}, PromptRow],
    ids=["jax array", "path", "function", "array of objects", "a type inside", "class"],
)
def test_only_arrays_and_plain_values_may_cross(value):
    with pytest.raises(TypeError, match="may not cross between processes"):
        byte_count(value)


def test_tokens_are_counted_for_the_rows_asked_for_alone():
    batch = experience()
    assert token_count((np.zeros(3), batch), (range(1, 3), range(5, 6))) == int(
        batch.lengths[1] + batch.lengths[2] + batch.lengths[5]
    )
    assert token_count((3, "x"), (range(2),)) == 0
