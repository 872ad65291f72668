import numpy as np
import pytest

from jaxflow.rewards.verdict import Verdict, described, read_verdict


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.25, Verdict(0.25, 0.25, {})),
        (True, Verdict(1.0, 1.0, {})),
        (np.float32(-2), Verdict(-2.0, -2.0, {})),
        (np.int64(2), Verdict(2.0, 2.0, {})),
        (np.bool_(True), Verdict(1.0, 1.0, {})),
        ({"score": -1, "acc": False, "pred": "7"}, Verdict(-1.0, 0.0, {}, "7")),
        ({"score": 0.5, "pred": 7}, Verdict(0.5, 0.5, {}, "7")),
        ({"score": 0.5, "pred": None}, Verdict(0.5, 0.5, {})),
        ({"score": 0.5, "pred": "x" * 900}, Verdict(0.5, 0.5, {}, "x" * 200)),
        ({"score": 0.5}, Verdict(0.5, 0.5, {})),
        (
            {"score": 1, "format ok": True, "nan": float("nan"), "steps": np.int32(3)},
            Verdict(1.0, 1.0, {"format_ok": 1.0, "steps": 3.0}),
        ),
    ],
)
def test_numbers_and_mappings_are_verdicts(value, expected):
    assert read_verdict(value) == expected


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
def test_anything_but_a_finite_number_is_no_verdict(value):
    with pytest.raises((TypeError, ValueError)):
        read_verdict(value)


def test_an_exception_is_told_in_short_whatever_it_says():
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    assert described(Silent()) == "Silent: "
    assert len(described(ValueError("x" * 10_000))) < 300
