import dataclasses

import numpy as np
import pytest

from jaxflow.data.batches import DemonstrationBatches, JudgementBatches, PromptBatches, fixed_batch
from jaxflow.data.tokenizer import CharacterTokenizer
from jaxflow.types import PromptRow, UserError

ALPHABET = "abcdefghijkl"
TOKENIZER = CharacterTokenizer(ALPHABET)


def make_rows(count):
    """Make rows of lengths 1 to 5, each beginning with a letter of its own."""
    texts = [(ALPHABET[i] * (1 + i % 5)) for i in range(count)]
    return [PromptRow(text, tuple(TOKENIZER.encode(text)), text[::-1] + "a", "test", {}) for text in texts]


def make_batches(rows, prompts_per_step=4, samples_per_prompt=1, shuffle=True, seed=7, pad_multiple=4):
    return PromptBatches(rows, prompts_per_step, samples_per_prompt, shuffle, seed, pad_multiple)


def prompts_in_order(batches, steps):
    return [row.prompt for step in range(steps) for row in batches.at(step).rows]


def test_any_step_can_be_asked_for_first():
    rows = make_rows(10)
    forward = make_batches(rows)
    expected = [forward.at(step) for step in range(9)]
    fresh = make_batches(rows)
    for step in (8, 0, 5, 3):
        got = fresh.at(step)
        np.testing.assert_array_equal(got.tokens, expected[step].tokens)
        assert got.rows == expected[step].rows
        assert got.step == step


def test_every_epoch_is_a_permutation_and_no_two_are_alike():
    rows = make_rows(10)
    order = prompts_in_order(make_batches(rows, prompts_per_step=4), 10)
    epochs = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == sorted(row.prompt for row in rows) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_further_prompts_are_of_their_step_and_round_alone_and_have_ids_of_their_own():
    batches = make_batches(make_rows(10), samples_per_prompt=2)
    at = {(s, r): batches.further(s, r, refills_per_step=3) for s in range(3) for r in range(3)}
    fresh = make_batches(make_rows(10), samples_per_prompt=2)
    for (step, refill), expected in reversed(at.items()):
        got = fresh.further(step, refill, refills_per_step=3)
        assert got.rows == expected.rows and got.step == step
        ids = np.concatenate([batches.at(step).sequence_ids, *(at[step, r].sequence_ids for r in range(3))])
        assert len(set(ids.tolist())) == len(ids) == 4 * 8
    assert len({tuple(row.prompt for row in prompts.rows) for prompts in at.values()}) == len(at)
    # Drawing them moves no step's own prompts.
    assert prompts_in_order(batches, 3) == prompts_in_order(
        make_batches(make_rows(10), samples_per_prompt=2), 3
    )


def test_seeds_give_different_orders_and_one_seed_the_same():
    rows = make_rows(12)
    assert prompts_in_order(make_batches(rows, seed=1), 3) == prompts_in_order(make_batches(rows, seed=1), 3)
    assert prompts_in_order(make_batches(rows, seed=1), 3) != prompts_in_order(make_batches(rows, seed=2), 3)


def test_the_order_of_a_seed_is_the_one_runs_were_made_with():
    # A change here would make every resumed run read other prompts than it would have.
    order = prompts_in_order(make_batches(make_rows(10), seed=7), 3)
    assert "".join(prompt[0] for prompt in order) == "hjaiecfgdbga"


def test_without_shuffling_rows_come_in_file_order_around_and_around():
    rows = make_rows(6)
    order = prompts_in_order(make_batches(rows, shuffle=False), 3)
    assert order == [row.prompt for row in rows] * 2


def test_samples_of_a_prompt_stand_together_and_share_a_group():
    batch = make_batches(make_rows(10), prompts_per_step=3, samples_per_prompt=2).at(1)
    np.testing.assert_array_equal(batch.groups, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(batch.sequence_ids, np.arange(6))
    assert all(batch.rows[i] is batch.rows[i + 1] for i in (0, 2, 4))
    assert len({row.prompt for row in batch.rows}) == 3


def test_rows_are_right_padded_to_the_multiple():
    batch = make_batches(make_rows(10), prompts_per_step=10, pad_multiple=4).at(0)
    assert batch.tokens.shape == (10, 8)
    for tokens, length, row in zip(batch.tokens, batch.lengths, batch.rows, strict=True):
        assert length == len(row.tokens)
        np.testing.assert_array_equal(tokens, [*row.tokens] + [0] * (8 - length))
    for array in (batch.tokens, batch.lengths, batch.sequence_ids, batch.groups):
        assert array.dtype == np.int32


def test_a_length_that_is_the_multiple_gets_no_padding():
    rows = [PromptRow("abcd", tuple(TOKENIZER.encode("abcd")), "a", "test", {})]
    assert fixed_batch(rows, 1, pad_multiple=4, step=0).tokens.shape == (1, 4)
    several = fixed_batch(rows, 3, pad_multiple=4, step=0)
    assert several.sequence_ids.tolist() == [0, 1, 2] and several.groups.tolist() == [0, 0, 0]


def test_fewer_rows_than_a_step_takes_are_refused():
    with pytest.raises(UserError, match=r"3 prompt rows.*4"):
        make_batches(make_rows(3), prompts_per_step=4)
    assert make_batches(make_rows(4), prompts_per_step=4).at(0).tokens.shape[0] == 4


def test_the_fixed_batch_keeps_the_rows_in_order():
    rows = make_rows(7)
    batch = fixed_batch(rows, 1, pad_multiple=1, step=30)
    assert batch.rows == tuple(rows)
    assert batch.step == 30
    np.testing.assert_array_equal(batch.groups, np.arange(7))


def test_demonstrations_are_prompt_solution_end_under_the_mask():
    rows = make_rows(9)
    batches = DemonstrationBatches(rows, lambda row: row.ground_truth, TOKENIZER, 4, seed=0)
    by_prompt = {row.tokens: row for row in rows}
    seen = []
    for step in range(9):
        batch = batches.at(step)
        assert batch.tokens.shape == (4, 5 + 6 + 1)
        for tokens, length, mask in zip(batch.tokens, batch.lengths, batch.response_mask, strict=True):
            start = int(mask.argmax())
            row = by_prompt[tuple(tokens[:start].tolist())]
            answer = [*TOKENIZER.encode(row.ground_truth), 1]
            assert tokens[start:length].tolist() == answer
            np.testing.assert_array_equal(
                mask, [False] * start + [True] * len(answer) + [False] * (12 - length)
            )
            seen.append(row.prompt)
    assert sorted(seen) == sorted(row.prompt for row in rows for _ in range(4))


def test_demonstrations_are_addressed_by_step():
    def make():
        return DemonstrationBatches(make_rows(9), lambda row: row.ground_truth, TOKENIZER, 4, seed=0)

    first, second = make(), make()
    expected = [first.at(step).tokens for step in range(5)]
    for step in (4, 1):
        np.testing.assert_array_equal(second.at(step).tokens, expected[step])


def make_judgements(rows, sequences_per_step=6, seed=0):
    return JudgementBatches(rows, lambda row: row.ground_truth, TOKENIZER, sequences_per_step, seed)


def judged(batch):
    """Return (prompt, response, label) of each row, as the mask cuts them, and check the padding."""
    triples = []
    for tokens, length, mask, label in zip(
        batch.tokens, batch.lengths, batch.response_mask, batch.labels, strict=True
    ):
        start = int(mask.argmax())
        np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(start, length))
        triples.append((tuple(tokens[:start].tolist()), tokens[start:length].tolist(), float(label)))
    return triples


def test_judgements_give_each_question_its_right_answer_and_a_wrong_one():
    rows = make_rows(9)
    right_answers = {row.tokens: [*TOKENIZER.encode(row.ground_truth), 1] for row in rows}
    batches, seen = make_judgements(rows), []
    for step in range(6):
        triples = judged(batches.at(step))
        assert [label for _, _, label in triples] == [1, 0] * 3
        assert [prompt for prompt, _, _ in triples[::2]] == [prompt for prompt, _, _ in triples[1::2]]
        for prompt, response, label in triples:
            assert (response == right_answers[prompt]) == (label == 1)
            seen.append(prompt)
    assert sorted(seen) == sorted(row.tokens for row in rows for _ in range(4))


def test_judgements_are_addressed_by_seed_and_step():
    expected = [make_judgements(make_rows(9)).at(step) for step in range(5)]
    again, other = make_judgements(make_rows(9)), make_judgements(make_rows(9), seed=1)
    for step in (4, 1):
        for name in ("tokens", "lengths", "response_mask", "labels"):
            np.testing.assert_array_equal(vars(again.at(step))[name], vars(expected[step])[name])
        assert (other.at(step).tokens != expected[step].tokens).any()


def test_wrong_answers_differ_from_epoch_to_epoch():
    rows = make_rows(4)
    batches = make_judgements(rows, sequences_per_step=8)
    wrong = [sorted(judged(batches.at(step))[1::2]) for step in range(3)]
    assert wrong[0] != wrong[1] != wrong[2] != wrong[0]


def test_judgements_have_one_shape_and_room_for_every_mistake():
    rows = make_rows(9)
    longest = max(len(row.tokens) for row in rows) + max(len(row.ground_truth) for row in rows)
    batches = make_judgements(rows, sequences_per_step=5)
    shapes = {batches.at(step).tokens.shape for step in range(40)}
    assert shapes == {(5, longest + 2)}
    assert batches.at(0).labels.tolist() == [1, 0, 1, 0, 1]


def test_a_solution_that_is_empty_cannot_be_judged():
    with pytest.raises(UserError, match=r"solution of prompt 'a' is empty"):
        JudgementBatches(make_rows(3), lambda row: "", TOKENIZER, 4, seed=0)


def test_each_sample_of_a_row_with_a_seed_has_its_own_and_other_rows_have_none():
    rows = [dataclasses.replace(row, seed=seed) for row, seed in zip(make_rows(2), (40, -1), strict=True)]
    batch = make_batches(rows, prompts_per_step=2, samples_per_prompt=3, shuffle=False).at(5)
    assert batch.own_seeds.tolist() == [40, 41, 42, -1, -1, -1] and batch.own_seeds.dtype == np.int32
