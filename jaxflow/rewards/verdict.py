"""What a reward function is asked about one response, and what its answer says.

Knows what counts as a score. Imports the standard library alone: the processes that run reward code use it too.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

FLOAT32_MAX = 3.4028234663852886e38
_NUMBERS_KEPT, _NAME_CHARACTERS, _SHOWN_CHARACTERS = 32, 64, 200

Reason = Literal["error", "timeout", "crash"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One response and what it is measured against; plain JSON values."""

    data_source: str
    solution: str  # the response's text
    ground_truth: object
    extra_info: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a reward function made of one response. Every number is a finite float32."""

    score: float
    accuracy: float  # in the function's own measure, usually in [0, 1]; the score where it told none
    numbers: Mapping[str, float]  # further numbers that it returned, by name; for people to watch
    prediction: str | None = None  # the answer that it read in the response (`pred`), cut; None: it told none


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a response has no verdict."""

    reason: Reason  # error: raised, or returned no finite number; timeout; crash: its process died
    message: str


class Judge(Protocol):
    """Gives verdicts on responses."""

    def check(self) -> None:
        """Refuse, as a `UserError`, what could not judge anything: a file that cannot be imported."""

    def check_sources(self, data_sources: Collection[str]) -> None:
        """Refuse, as a `UserError`, rows of data sources that it has no measure for."""

    def judge(self, cases: Sequence[Case]) -> list[Verdict | Failure]:
        """Give one verdict for each case, in their order."""

    def close(self) -> None:
        """End the processes that it started; it is not asked again."""


def read_verdict(result: object) -> Verdict:
    """Read what a reward function returned: a number, or a mapping with one as `score`.

    `acc` of a mapping is the accuracy (the score without it), `pred` the answer that was read; other numbers are kept
    under their names.

    Raises:
      TypeError, ValueError: there is no score, or score or accuracy is not a finite float32.
    """
    if not isinstance(result, Mapping):
        score = finite(result, "the reward")
        return Verdict(score, score, {})
    if "score" not in result:
        raise ValueError(f"the reward returned a mapping without 'score', with {', '.join(map(str, result))}")
    score = finite(result["score"], "'score'")
    accuracy = finite(result["acc"], "'acc'") if "acc" in result else score
    more: dict[str, float] = {}
    for key, value in result.items():
        if key not in ("score", "acc", "pred") and _is_number(value) and len(more) < _NUMBERS_KEPT:
            number = _as_float(value)
            if number is not None:
                more[re.sub(r"[^\w./@-]", "_", str(key))[:_NAME_CHARACTERS]] = number
    prediction = result.get("pred")
    told = isinstance(prediction, str) or _is_number(prediction)
    return Verdict(score, accuracy, more, shortened(str(prediction)) if told else None)


def shortened(prediction: str) -> str:
    """Cut a prediction to what is kept of it."""
    return prediction[:_SHOWN_CHARACTERS]


def finite(value: object, name: str) -> float:
    """Return a number as a float; raise where it is none, or not a finite float32."""
    if not _is_number(value):
        raise TypeError(f"{name} is {type(value).__name__}, not a number")
    number = _as_float(value)
    if number is None:
        raise ValueError(f"{name} is {value!r}"[:_SHOWN_CHARACTERS] + ", not a finite float32")
    return number


def described(error: BaseException) -> str:
    """Write an exception in one short line."""
    return f"{type(error).__name__}: {_message(error)}"


def _message(error: BaseException) -> str:
    try:
        return str(error)[:_SHOWN_CHARACTERS]
    except Exception:  # an exception class of the user's that cannot even be written
        return ""


def _is_number(value: object) -> bool:
    # NumPy's truth values are no numbers to Python; where NumPy was never imported there are none.
    numpy = sys.modules.get("numpy")
    return isinstance(value, numbers.Real) or (numpy is not None and isinstance(value, numpy.bool_))


def _as_float(value: object) -> float | None:
    """Return a finite float32's value, or None."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) <= FLOAT32_MAX else None
