import numpy as np
import pytest

from jaxflow.rewards.scoring import score_rows
from jaxflow.rewards.verdict import Case, Failure, Verdict
from jaxflow.types import PromptRow


class Told:
    """A judge that says what it was given to say."""

    def __init__(self, *verdicts):
        self.verdicts, self.cases = verdicts, []

    def judge(self, cases):
        self.cases += cases
        return list(self.verdicts)


def make_row(prompt="1+2=", ground_truth="3"):
    return PromptRow(prompt, (2, 3), ground_truth, "sums", {"index": 3})


def test_scores_follow_their_rows_and_failures_take_the_fallback():
    judge = Told(
        Verdict(1.0, 0.5, {"steps": 2.0}),
        Failure("timeout", "no answer"),
        Verdict(-1.0, 0.0, {}),
        Failure("crash", "gone"),
    )
    rows = [make_row(f"p{i}") for i in range(4)]
    scored = score_rows(judge, ["a", "b", "c", "d"], rows, fallback_score=-0.25)
    assert scored.scores.scores.tolist() == [1.0, -0.25, -1.0, -0.25]
    assert scored.scores.accuracy.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert scored.scores.failed.tolist() == [False, True, False, True]
    assert scored.reasons.tolist() == [0, 2, 0, 3]
    assert scored.numbers == ({"steps": 2.0}, {}, {}, {})
    assert scored.first_failure == "no answer (prompt 'p1')"
    assert scored.scores.scores.dtype == scored.scores.accuracy.dtype == np.float32
    assert scored.scores.failed.dtype == np.bool_ and scored.reasons.dtype == np.int32


def test_the_judge_sees_the_row():
    judge = Told(Verdict(0.0, 0.0, {}))
    score_rows(judge, ["answer"], [make_row()], 0.0)
    assert judge.cases == [Case("sums", "answer", "3", {"index": 3})]


def test_a_failure_is_told_in_short_however_long_the_prompt():
    scored = score_rows(Told(Failure("error", "broken")), [""], [make_row("7" * 10_000)], 0.0)
    assert len(scored.first_failure) < 500


def test_no_rows_give_no_scores():
    assert score_rows(Told(), [], [], 0.0).scores.scores.shape == (0,)


def test_responses_without_rows_are_a_mistake():
    with pytest.raises(ValueError):
        score_rows(Told(), ["a", "b"], [make_row()], 0.0)
