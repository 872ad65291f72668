import numpy as np
import pytest

from jaxflow.rewards.function import exact_match
from jaxflow.rewards.scoring import score_rows
from jaxflow.types import PromptRow


def make_row(prompt="1+2=", ground_truth="3", extra_info=None):
    return PromptRow(prompt, (2, 3), ground_truth, "sums", {} if extra_info is None else extra_info)


def returning(value):
    def function(data_source, solution_str, ground_truth, extra_info):
        return value

    return function


def test_scores_follow_their_rows():
    rows = [make_row(ground_truth=str(i)) for i in range(4)]
    scored = score_rows(exact_match, ["0", "9", "2", ""], rows, fallback_score=-1.0)
    np.testing.assert_array_equal(scored.scores.scores, [1, 0, 1, 0])
    np.testing.assert_array_equal(scored.scores.accuracy, [1, 0, 1, 0])
    assert not scored.scores.failed.any()
    assert scored.first_failure is None
    assert scored.scores.scores.dtype == scored.scores.accuracy.dtype == np.float32
    assert scored.scores.failed.dtype == np.bool_


def test_the_function_sees_the_row():
    calls = []

    def function(**arguments):
        calls.append(arguments)
        return 0.0

    score_rows(function, ["answer"], [make_row(extra_info={"index": 3})], 0.0)
    assert calls == [
        {
            "data_source": "sums",
            "solution_str": "answer",
            "ground_truth": "3",
            "extra_info": {"index": 3},
        }
    ]


@pytest.mark.parametrize(
    ("value", "score", "accuracy"),
    [
        (0.25, 0.25, 0.25),
        (True, 1.0, 1.0),
        (np.float32(-2), -2.0, -2.0),
        (np.int64(2), 2.0, 2.0),
        (np.bool_(True), 1.0, 1.0),
        ({"score": -1, "acc": False, "pred": "7"}, -1.0, 0.0),
        ({"score": 0.5}, 0.5, 0.5),
    ],
)
def test_numbers_and_mappings_are_scores(value, score, accuracy):
    scores = score_rows(returning(value), [""], [make_row()], 9.0).scores
    assert (scores.scores[0], scores.accuracy[0], scores.failed[0]) == (score, accuracy, False)


@pytest.mark.parametrize(
    "value",
    [
        None,
        float("nan"),
        float("inf"),
        -float("inf"),
        1e300,
        10**400,
        "1.0",
        [1.0],
        1j,
        {},
        {"acc": 1.0},
        {"score": None},
        {"score": 1.0, "acc": float("nan")},
    ],
)
def test_anything_but_a_finite_number_is_a_failure(value):
    scored = score_rows(returning(value), [""], [make_row()], fallback_score=-0.5)
    assert scored.scores.failed.tolist() == [True]
    assert scored.scores.scores.tolist() == [-0.5]
    assert scored.scores.accuracy.tolist() == [0.0]
    assert "1+2=" in scored.first_failure


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit("broken"), RecursionError("broken")])
def test_a_row_that_raises_costs_that_row_alone(error):
    def function(data_source, solution_str, ground_truth, extra_info):
        if solution_str == "bad":
            raise error
        return 1.0

    rows = [make_row(prompt=f"p{i}") for i in range(4)]
    scored = score_rows(function, ["a", "bad", "b", "bad"], rows, fallback_score=0.0)
    assert scored.scores.failed.tolist() == [False, True, False, True]
    assert scored.scores.scores.tolist() == [1, 0, 1, 0]
    assert scored.first_failure == f"{type(error).__name__}: broken (prompt 'p1')"


def test_an_interrupt_is_not_a_failed_row():
    def function(**arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_rows(function, [""], [make_row()], 0.0)


def test_a_failure_is_told_in_short_however_long_the_prompt():
    scored = score_rows(returning(None), [""], [make_row(prompt="7" * 10_000)], 0.0)
    assert len(scored.first_failure) < 500


def test_a_function_that_changes_extra_info_does_not_change_the_row():
    def function(data_source, solution_str, ground_truth, extra_info):
        extra_info["index"] += 1
        return extra_info["index"]

    row = make_row(extra_info={"index": 0})
    assert score_rows(function, ["", ""], [row, row], 0.0).scores.scores.tolist() == [1, 1]


def test_no_rows_give_no_scores():
    assert score_rows(exact_match, [], [], 0.0).scores.scores.shape == (0,)


def test_responses_without_rows_are_a_mistake():
    with pytest.raises(ValueError):
        score_rows(exact_match, ["a", "b"], [make_row()], 0.0)
