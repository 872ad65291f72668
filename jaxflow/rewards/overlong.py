"""The soft over-length penalty. Arrays in, arrays out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def overlong_penalty(
    response_tokens: Int[np.ndarray, "B"], max_response_tokens: int, buffer_tokens: int, factor: float
) -> Float[np.ndarray, "B"]:
    """Return what is added to the score of each response for its length, 0 or less.

    0 up to max_response_tokens − buffer_tokens, then falling linearly to −factor at max_response_tokens and beyond:
    Equation 13 of DAPO (arXiv 2503.14476), times the factor.

    Args:
      response_tokens: lengths of the responses, the end token included.
      max_response_tokens: the longest response.
      buffer_tokens: the stretch before it in which the penalty grows; at least 1.
      factor: the penalty's size at its end.
    """
    exceeding = (response_tokens - (max_response_tokens - buffer_tokens)) / buffer_tokens
    return (-factor * np.clip(exceeding, 0.0, 1.0)).astype(np.float32)
