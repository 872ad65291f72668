import importlib.util

import pytest

from jaxflow.rewards.built_in import BuiltIn
from jaxflow.rewards.sandbox_process import Limits
from jaxflow.rewards.verdict import Case, Failure, Verdict
from jaxflow.types import UserError

LIMITS = Limits(processes=1, timeout_seconds=20.0, memory_megabytes=1024)


def test_rows_are_scored_by_their_data_source_and_keep_their_order():
    cases = [
        Case("openai/gsm8k", "#### 4", "4", {}),
        Case("aime24", "Answer: 4", "5", {}),
        Case("openai/gsm8k", "#### 4", ["4"], {}),
        Case("openai/gsm8k", "#### 5", "4", {}),
    ]
    told = BuiltIn("", LIMITS).judge(cases)
    assert told[0] == Verdict(1.0, 1.0, {}) and told[3] == Verdict(0.0, 0.0, {})
    assert told[1] == Verdict(-1.0, 0.0, {})
    assert told[2].reason == "error" and "gsm8k: TypeError: needs text" in told[2].message


def test_one_scorer_can_judge_all_rows():
    judge = BuiltIn("exact_match", LIMITS)
    judge.check_sources(["anything"])
    assert judge.judge([Case("anything", "a", "a", {})]) == [Verdict(1.0, 1.0, {})]


def test_an_unknown_data_source_is_named_beside_the_known_ones():
    with pytest.raises(UserError, match=r"'mine'.*reward\.function.*openai/gsm8k.*aime"):
        BuiltIn("", LIMITS).check_sources(["openai/gsm8k", "mine"])


def test_a_missing_package_is_named_where_rows_need_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    BuiltIn("", LIMITS).check_sources(["openai/gsm8k"])
    with pytest.raises(UserError, match=r"needs the package math-verify \(rows of 'lighteval/MATH'"):
        BuiltIn("", LIMITS).check_sources(["openai/gsm8k", "lighteval/MATH"])
    with pytest.raises(UserError, match=r"reward\.scorer asks for it"):
        BuiltIn("math_verify", LIMITS).check()


def test_answers_are_compared_by_their_meaning():
    pytest.importorskip("math_verify")
    judge = BuiltIn("", LIMITS)
    cases = [
        Case("lighteval/MATH", rf"so \boxed{{{answer}}}", truth, {})
        for truth, answer in [
            (r"\frac{1}{2}", "0.5"),
            ("(x+1)^2", "x^2 + 2x + 1"),
            (r"\{1, 2\}", r"\{2, 1\}"),
            ("5", "6"),
            (r"\sqrt{8}", r"2\sqrt{2}"),
        ]
    ]
    try:
        told = judge.judge([*cases, Case("lighteval/MATH", "no box: 5", "5", {})])
    finally:
        judge.close()
    assert not any(isinstance(verdict, Failure) for verdict in told), told
    assert [verdict.score for verdict in told] == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
