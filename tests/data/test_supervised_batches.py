"""Rows with their responses become batches: every token at its place, every epoch whole, one width for all steps."""

import collections

import numpy as np
import pytest

from jaxflow.data.supervised import DemonstrationRow, JudgedRow, PreferenceRow
from jaxflow.data.supervised_batches import SupervisedBatches, held_out_batch
from jaxflow.types import Demonstrations, Judgements, Preferences, PromptRow


def asked(number):
    """A prompt of one to three tokens that tell which one it is."""
    tokens = (number,) * (1 + number % 3)
    return PromptRow("", tokens, "", "test", {})


def response(number, side=0):
    return tuple(range(100 * (side + 1) + number, 100 * (side + 1) + number + 1 + (number + side) % 4))


ROWS = {
    "demonstrations": [DemonstrationRow(asked(n), response(n)) for n in range(10)],
    "judgements": [JudgedRow(asked(n), response(n), n % 3 == 0) for n in range(10)],
    "preferences": [
        PreferenceRow(asked(n), response(n), response(n, 1), n / 2, -1.0, float(n % 2)) for n in range(10)
    ],
}
KINDS = {"demonstrations": Demonstrations, "judgements": Judgements, "preferences": Preferences}


def sequences(batch):
    """Prompt and response of every sequence, read back by the mask, and what stands behind the length."""
    tokens = batch.tokens.reshape(-1, batch.tokens.shape[-1])
    mask = batch.response_mask.reshape(tokens.shape)
    lengths = batch.lengths
    if isinstance(batch, Preferences):
        lengths = np.stack([batch.chosen_lengths, batch.rejected_lengths], axis=1).reshape(-1)
    for row, on, length in zip(tokens, mask, lengths, strict=True):
        assert not on[length:].any() and not row[length:].any()
        yield tuple(row[:length][~on[:length]].tolist()), tuple(row[on].tolist())


@pytest.mark.parametrize("kind", ROWS)
def test_a_batch_holds_every_row_as_it_is(kind):
    rows, batch = ROWS[kind], held_out_batch(ROWS[kind])
    assert type(batch) is KINDS[kind]
    expected = [(row.asked.tokens, given) for row in rows for given in row.responses]
    assert list(sequences(batch)) == expected
    if kind == "judgements":
        assert batch.labels.tolist() == [float(row.wanted) for row in rows]
    if kind == "preferences":
        told = zip(batch.margins, batch.chosen_harm, batch.rejected_harm, strict=True)
        assert [tuple(map(float, one)) for one in told] == [
            (row.margin, row.chosen_harm, row.rejected_harm) for row in rows
        ]
    assert {leaf.dtype.name for leaf in vars(batch).values() if leaf is not None} <= {
        "int32",
        "bool",
        "float32",
    }


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_each_row_once_and_steps_are_functions_of_their_number(kind, shuffle):
    batches = SupervisedBatches(ROWS[kind], 4, shuffle, seed=3)
    steps = [batches.at(step) for step in range(5)]  # two epochs of ten rows
    again = SupervisedBatches(ROWS[kind], 4, shuffle, seed=3)
    np.testing.assert_array_equal(again.at(3).tokens, steps[3].tokens)
    assert len({batch.tokens.shape for batch in steps}) == 1  # one compiled program
    per_row = len(ROWS[kind][0].responses)
    seen = [pair for batch in steps for pair in sequences(batch)]
    epochs = [seen[: 10 * per_row], seen[10 * per_row :]]
    whole = sorted((row.asked.tokens, given) for row in ROWS[kind] for given in row.responses)
    assert [sorted(epoch) for epoch in epochs] == [whole, whole]
    assert (epochs[0] == epochs[1]) == (not shuffle)


def test_a_step_may_take_more_rows_than_there_are():
    """What is imitated beside a step's prompts may be few; each comes as often as any other, to one."""
    batch = SupervisedBatches(ROWS["demonstrations"], 25, True, 0).at(0)
    counts = collections.Counter(sequences(batch))
    assert sorted(set(counts.values())) == [2, 3] and sum(counts.values()) == 25
