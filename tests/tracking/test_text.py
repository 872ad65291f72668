import math

import pytest

from jaxflow.tracking.text import duration, figure, stage_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 s"),
        (4.16, "4.2 s"),
        (42.4, "42 s"),
        (59.7, "1 min 00 s"),
        (242, "4 min 02 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (200000, "55 h 33 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (0.12345, "0.123"),
        (1e-6, "1e-06"),
        (12345.6, "12,346"),
        (-1234, "-1,234"),
        (math.nan, "nan"),
    ],
)
def test_figures_have_three_digits_or_grouped_thousands(value, words):
    assert figure(value) == words


def test_stages_without_words_keep_their_name():
    assert stage_words("gen") == "generate" and stage_words("compile") == "compile"
