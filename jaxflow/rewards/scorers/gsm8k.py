"""Grade-school sums (GSM8K, arXiv 2110.14168), read as verl reads them: a number near the end, compared as text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxflow.rewards.scorers.exact_match import answer_text

_READ_CHARACTERS = 300  # an answer stands at the end
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[0-9.,]+")


def gsm8k(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> float:
    """Give 1 if the number behind the last "#### " is the ground truth, else 0."""
    truth = _plain(answer_text(ground_truth))
    found = _STRICT.findall(solution_str[-_READ_CHARACTERS:])
    return float(bool(found) and _plain(found[-1]) == truth)


def gsm8k_flexible(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> float:
    """Give 1 if the last number is the ground truth, however it is announced, else 0."""
    truth = _plain(answer_text(ground_truth))
    found = [text for text in _NUMBER.findall(solution_str[-_READ_CHARACTERS:]) if re.search("[0-9]", text)]
    return float(bool(found) and _plain(found[-1].rstrip(".,")) == truth)


def _plain(number: str) -> str:
    return number.replace(",", "")
