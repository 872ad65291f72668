r"""Answers to competition mathematics as text: found in \boxed{…} or behind "Answer:", tidied and compared.

Knows how the same answer is written in different ways, and no algebra: 1/2 and 0.5 differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxflow.rewards.scorers.exact_match import answer_text

_READ_CHARACTERS = 300  # of a response that announces its answer
_LONGEST_ANSWER = 1000  # characters; what is longer is no answer
_ANNOUNCED = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
_BOXES = ("\\boxed", "\\fbox")

_DROPPED = re.compile(
    r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[!,;:]|\\ |\\\$|\$|\\%|%|\^\{?\\circ\}?|\\quad|~|,\\!"
)
_WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|mathbf)\s*\{([^{}]*)\}")
_UNITS = re.compile(
    r"(?<=[0-9}])\s*\\?(?:square|cubic)?\s*(?:units?|degrees?|dollars?|cents?|inch(?:es)?|feet|foot|cm|mm|km|meters?|"
    r"miles?|hours?|minutes?|seconds?|points?)$"
)
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_BARE_FRACTION = re.compile(r"\\frac([0-9a-zA-Z])([0-9a-zA-Z])")
_SLASHED = re.compile(r"(-?)([0-9]+)/([0-9]+)")
_BARE_ROOT = re.compile(r"\\sqrt([0-9a-zA-Z])")


def math_string(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> float:
    r"""Give 1 if the last \boxed{…} of the response and the ground truth are the same text when tidied, else 0."""
    boxed, truth = last_boxed(solution_str), truth_text(ground_truth)
    return float(boxed is not None and tidied(boxed) == tidied(truth))


def math_dapo(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> Mapping[str, float]:
    """Give 1 if what stands behind the last "Answer:" is the ground truth when tidied, else −1 (arXiv 2503.14476)."""
    found = _ANNOUNCED.findall(solution_str[-_READ_CHARACTERS:])
    truth, right = truth_text(ground_truth), False
    if found:
        boxed = last_boxed(found[-1])
        right = tidied(found[-1] if boxed is None else boxed) == tidied(truth)
    return {"score": 1.0 if right else -1.0, "acc": float(right)}


def truth_text(ground_truth: object) -> str:
    r"""Return the answer in a ground truth, which may itself be a solution with a \boxed{…}."""
    text = answer_text(ground_truth)
    boxed = last_boxed(text)
    return text if boxed is None else boxed


def last_boxed(text: str) -> str | None:
    r"""Return what the last \boxed{…} or \fbox{…} holds (or the word behind "\boxed "), None where there is none."""
    start, command = max((text.rfind(command), command) for command in _BOXES)
    if start < 0:
        return None
    rest = text[start + len(command) :].lstrip()
    if not rest.startswith("{"):
        words = rest.split(maxsplit=1)
        return words[0].strip("$.")[:_LONGEST_ANSWER] if words else None
    depth = 0
    for i, character in enumerate(rest[: _LONGEST_ANSWER + 2]):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:i]
    return None


def tidied(answer: str) -> str:
    """Write an answer in one way: without dollars, spacing, units and words; fractions as \\frac{a}{b}."""
    text = answer.strip()[:_LONGEST_ANSWER]
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("−", "-")
    text = _DROPPED.sub("", text).strip().rstrip(".")
    text = _WORDS.sub(r"\1", text)
    text = _UNITS.sub("", text)
    # "x = 5" answers with 5; a longer left side is part of the answer.
    left, equals, right = text.partition("=")
    if equals and len(left.strip()) <= 2 and "=" not in right:
        text = right
    text = re.sub(r"\s+", "", text)
    text = _THOUSANDS.sub("", text)
    text = _BARE_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    slashed = _SLASHED.fullmatch(text)
    if slashed is not None:
        text = f"{slashed[1]}\\frac{{{slashed[2]}}}{{{slashed[3]}}}"
    text = re.sub(r"(?<![0-9])\.(?=[0-9])", "0.", text)
    return re.sub(r"(?<![0-9.])([0-9]+)\.0+(?![0-9])", r"\1", text)
