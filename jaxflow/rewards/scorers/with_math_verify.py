r"""Answers to competition mathematics by their meaning: \boxed{…}, parsed and compared by the package math-verify.

Algebra on what a model wrote can take for ever, so this file runs where reward files do: in a process that can be
killed.
"""

from __future__ import annotations

from collections.abc import Mapping

from math_verify import parse, verify

from jaxflow.rewards.scorers.math_text import last_boxed, tidied, truth_text


def compute_score(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> float:
    r"""Give 1 if the last \boxed{…} of the response means what the ground truth does, else 0."""
    boxed, truth = last_boxed(solution_str), truth_text(ground_truth)
    if boxed is None:
        return 0.0
    if tidied(boxed) == tidied(truth):
        return 1.0
    # The process has a time limit of its own.
    told, expected = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (boxed, truth))
    return float(verify(expected, told, timeout_seconds=None))
