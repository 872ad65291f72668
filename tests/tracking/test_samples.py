import dataclasses
import math
import unicodedata

import pytest

from jaxflow.tracking.jsonl import read_rows
from jaxflow.tracking.samples import SamplesWriter, pick_samples, sanitise, shorten, with_costs
from jaxflow.types import Sample


def sample(step=0, score=0.0, response="r", **numbers):
    return Sample(step, "addition", "1+1=", response, "2", score, 0.0, True, numbers)


def fail(message):
    raise AssertionError(message)


def test_a_resumed_run_leaves_the_samples_of_an_uninterrupted_one(tmp_path):
    for name, steps in (("straight", (0, 10, 20)), ("resumed", (0, 10))):
        writer = SamplesWriter(tmp_path / name, fail)
        for step in steps:
            writer.write([sample(step, response=f"answer {row} \x1b[31m\n") for row in range(3)])
    resumed = SamplesWriter(tmp_path / "resumed", fail)
    resumed.truncate_after(0)
    for step in (10, 20):
        resumed.write([sample(step, response=f"answer {row} \x1b[31m\n") for row in range(3)])
    straight = tmp_path / "straight" / "samples.jsonl"
    assert (tmp_path / "resumed" / "samples.jsonl").read_bytes() == straight.read_bytes()
    assert Sample(**read_rows(straight)[4]) == sample(10, response="answer 1 \x1b[31m\n")


def test_what_another_judge_said_of_an_answer_stands_beside_what_the_first_one_said():
    judged = with_costs([sample(score=1.0, help=0.5)], [sample(score=-2.0, safe=1.0)])
    assert judged == (sample(score=1.0, help=0.5, safe=1.0, cost=-2.0),)


def test_a_read_only_place_is_told_once_and_survived(tmp_path):
    (tmp_path / "file").write_text("in the way")
    warnings = []
    writer = SamplesWriter(tmp_path / "file", warnings.append)
    writer.write([sample()])
    writer.write([sample()])
    assert writer.failures == 3 and len(warnings) == 1


def test_best_worst_and_first_rows_are_picked_in_turn():
    rows = [sample(score=score) for score in (0.5, 1.0, 0.0, math.nan, 0.75, 0.25)]
    assert [row.score for row in pick_samples(rows, 1)] == [1.0]
    assert [str(row.score) for row in pick_samples(rows, 3)] == ["1.0", "0.5", "nan"]
    assert [str(row.score) for row in pick_samples(rows, 5)] == ["1.0", "0.75", "0.5", "0.0", "nan"]


def test_equal_scores_pick_the_first_rows_and_never_one_twice():
    rows = [dataclasses.replace(sample(), response=str(i)) for i in range(5)]
    assert [row.response for row in pick_samples(rows, 3)] == ["0", "1", "2"]


@pytest.mark.parametrize("count", [0, 2, 9])
def test_no_more_rows_are_picked_than_there_are_or_are_asked_for(count):
    assert len(pick_samples([sample(), sample()], count)) == min(count, 2)
    assert pick_samples([], count) == ()


def test_control_characters_are_shown_not_obeyed():
    assert sanitise("a\r\nb\nc\td") == "a⏎b⏎c␉d"
    assert sanitise("\x1b[31mred\x07\x00\x7f\x9b1m") == "␛[31mred␇␀␡\\u009b1m"
    assert sanitise("\u202eevil\u2066\u200b\u2028\ud800") == "\\u202eevil\\u2066\\u200b\\u2028\\ud800"
    assert sanitise("2+2=4 é 中 🙂 [bold]") == "2+2=4 é 中 🙂 [bold]"


def test_no_character_at_all_stays_hidden():
    text = sanitise("".join(map(chr, range(0x110000))))
    assert not {unicodedata.category(character) for character in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_long_texts_lose_their_middle():
    assert shorten("abcdefghijk", 11) == "abcdefghijk"
    assert shorten("abcdefghijkl", 11) == "abcd … ijkl"
    assert all(len(shorten("x" * 100, n)) == n for n in range(3, 50))
