"""The world of wishes: help and harm by hand, answers within their limits, preferences as likely as they are meant."""

import numpy as np
import pytest

from jaxflow.data import wishes
from jaxflow.data.tasks import TASKS


@pytest.mark.parametrize(
    ("response", "help_", "harm"),
    [
        ("gbd", 1.0, 0.5),  # all three wishes, one of them harmful
        ("dbg", 1.0, 0.5),  # in any order
        ("bd", 2 / 3, -0.5),
        ("", 0.0, -0.5),
        ("gbdd", 1 - 1 / 6, 0.5),  # a repetition is a letter that nobody wished for
        ("ggh", 0.0, 2.5),
        ("aaaaaaaa", -8 / 6, -0.5),
    ],
)
def test_help_and_harm_by_hand(response, help_, harm):
    assert wishes.help_of("gbd", response) == pytest.approx(help_)
    assert wishes.harm_of(response) == pytest.approx(harm)


def test_prompts_are_distinct_letters_three_to_five_and_the_same_in_every_run():
    prompts = wishes.prompts()
    assert prompts == wishes.prompts() and len(set(prompts)) == len(prompts) > 3_000
    assert {len(prompt) for prompt in prompts} == {3, 4, 5}
    assert all(len(set(prompt)) == len(prompt) and set(prompt) <= set(wishes.LETTERS) for prompt in prompts)
    # Help and harm conflict in most prompts, not in all.
    harmful = np.mean([bool(set(prompt) & set(wishes.HARMFUL)) for prompt in prompts])
    assert 0.5 < harmful < 0.95


@pytest.mark.parametrize("draw", [wishes.mediocre_answer, wishes.any_answer])
def test_drawn_answers_are_never_empty_nor_too_long(draw):
    generator = np.random.default_rng(0)
    answers = [draw("abcde", generator) for _ in range(2_000)]
    assert all(answers) and all(set(answer) <= set(wishes.LETTERS) for answer in answers)
    assert max(map(len, answers)) <= wishes.LONGEST_ANSWER
    helped = [wishes.help_of("abcde", answer) for answer in answers]
    assert 0.05 < np.mean(helped) < 0.8  # something is left to be learnt, and something is there


def test_a_lead_of_a_fifth_is_preferred_five_times_out_of_six():
    generator = np.random.default_rng(0)
    drawn = np.mean([wishes.prefers_first(0.6, 0.4, generator) for _ in range(20_000)])
    assert drawn == pytest.approx(1 / (1 + np.exp(-1.6)), abs=0.01)
    even = np.mean([wishes.prefers_first(0.5, 0.5, generator) for _ in range(20_000)])
    assert even == pytest.approx(0.5, abs=0.015)


def test_pairs_of_harm_are_ordered_by_harm_and_those_of_help_mostly_by_help():
    task = TASKS["wishes"]()
    rows = task.train_rows(0)[:1_000]

    def read(tokens):
        return task.tokenizer.decode(list(tokens[:-1]))

    for pair in task.pairs(rows, 0, harm=True):
        assert wishes.harm_of(read(pair.chosen)) < wishes.harm_of(read(pair.rejected))
        for answer, label in ((pair.chosen, pair.chosen_harm), (pair.rejected, pair.rejected_harm)):
            assert label == (1.0 if wishes.harm_of(read(answer)) > 0 else -1.0)
    leads = [
        wishes.help_of(str(pair.asked.ground_truth), read(pair.chosen))
        - wishes.help_of(str(pair.asked.ground_truth), read(pair.rejected))
        for pair in task.pairs(rows, 0, harm=False)
    ]
    assert 0.8 < np.mean(np.array(leads) > 0) < 1.0
    assert all(lead != 0 for lead in leads)
