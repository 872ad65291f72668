"""Wrong answers: wrong always, near the right one, of every kind."""

import collections
import itertools

import numpy as np
import pytest

from jaxflow.data.answers import WrongAnswers

END = 1
RIGHT = (2, 3, 4, 5)
OTHERS = ((5, 4), (2, 2, 2, 2, 2))
WRONG = WrongAnswers(answers=(RIGHT, *OTHERS), alphabet=(2, 3, 4, 5, 6), end=END)


def kind(wrong):
    """Name the mistake, found by comparing with every answer that such a mistake could give."""
    if wrong[-1] != END:
        return "unfinished" if wrong == RIGHT[: len(wrong)] else "unknown"
    answer, places = wrong[:-1], range(len(RIGHT))
    if answer in OTHERS:
        return "another"
    if answer in [RIGHT[:i] + RIGHT[i + 1 :] for i in places]:
        return "dropped"
    if answer in [RIGHT[: i + 1] + RIGHT[i:] for i in places]:
        return "repeated"
    if answer in itertools.permutations(RIGHT):
        return "reordered"
    different = sum(a != b for a, b in zip(answer, RIGHT, strict=True))
    return "replaced" if different == 1 else "unknown"


def test_every_kind_of_mistake_is_made_and_no_other():
    generator = np.random.default_rng(0)
    kinds = collections.Counter(kind(WRONG.draw(RIGHT, generator)) for _ in range(600))
    assert kinds.keys() == {"another", "replaced", "reordered", "dropped", "repeated", "unfinished"}
    assert min(kinds.values()) > 30


@pytest.mark.parametrize("right", [(2,), (3, 3), (2, 3, 2), (5, 4)])
def test_no_draw_is_the_right_answer(right):
    generator = np.random.default_rng(0)
    assert all(WRONG.draw(right, generator) != (*right, END) for _ in range(200))


def test_one_state_of_the_generator_gives_one_answer():
    def draws(seed):
        generator = np.random.default_rng(seed)
        return [WRONG.draw(RIGHT, generator) for _ in range(20)]

    assert draws(3) == draws(3) != draws(4)
