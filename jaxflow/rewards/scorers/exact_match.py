"""The response is the answer, or it is not."""

from __future__ import annotations

from collections.abc import Mapping


def answer_text(ground_truth: object) -> str:
    """Return a ground truth as text; TypeError if it is neither text nor a number."""
    if not isinstance(ground_truth, str | int | float):
        raise TypeError(f"needs text or a number as ground truth, not {type(ground_truth).__name__}")
    return str(ground_truth).strip()


def exact_match(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> float:
    """Give 1 if the response is the ground truth up to surrounding white space, else 0."""
    return float(solution_str.strip() == answer_text(ground_truth))
