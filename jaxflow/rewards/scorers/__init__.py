"""Built-in scorers, each a function with verl's signature, and which one judges which data source.

Those that only compare text run in the trainer's process: they execute nothing of anybody's, in time linear in the
text. The one that needs a library for algebra runs where reward files do. The data sources are those of verl.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

from jaxflow.rewards.scorers.even_tokens import even_tokens
from jaxflow.rewards.scorers.exact_match import exact_match
from jaxflow.rewards.scorers.gsm8k import gsm8k, gsm8k_flexible
from jaxflow.rewards.scorers.math_text import math_dapo, math_string
from jaxflow.rewards.scorers.wishes import wishes, wishes_cost

TEXT_SCORERS: Mapping[str, Callable[..., object]] = {
    "even_tokens": even_tokens,
    "exact_match": exact_match,
    "gsm8k": gsm8k,
    "gsm8k_flexible": gsm8k_flexible,
    "math_dapo": math_dapo,
    "math_string": math_string,
    "wishes": wishes,
    "wishes_cost": wishes_cost,
}

# Name -> file whose compute_score it is, and the package that this imports.
LIBRARY_SCORERS: Mapping[str, tuple[pathlib.Path, str]] = {
    "math_verify": (pathlib.Path(__file__).with_name("with_math_verify.py"), "math_verify"),
}

SCORERS = (*TEXT_SCORERS, *LIBRARY_SCORERS)

_NUMINA = ("aops_forum", "synthetic_math", "amc_aime", "synthetic_amc", "cn_k12", "olympiads")

_BY_SOURCE: Mapping[str, str] = {
    "openai/gsm8k": "gsm8k",
    "lighteval/MATH": "math_verify",
    "DigitalLearningGmbH/MATH-lighteval": "math_verify",
    "HuggingFaceH4/MATH-500": "math_verify",
    **{f"numina_{name}": "math_verify" for name in _NUMINA},
    "math": "math_dapo",
    "math_dapo": "math_dapo",
    "math_dapo_reasoning": "math_dapo",
}
_BY_PREFIX = {"aime": "math_dapo"}

KNOWN_SOURCES = (*_BY_SOURCE, *(f"{prefix}…" for prefix in _BY_PREFIX))


def scorer_of(data_source: str) -> str | None:
    """Return the name of the scorer for rows of a data source, None where there is none."""
    if data_source in _BY_SOURCE:
        return _BY_SOURCE[data_source]
    return next((name for prefix, name in _BY_PREFIX.items() if data_source.startswith(prefix)), None)
