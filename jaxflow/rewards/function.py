"""The user's reward function: a file and a name in it, with verl's `compute_score` signature.

Reads the file and never runs it: that is done in processes that can be killed (rewards/sandbox.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from jaxflow.rewards.sandbox_process import FunctionFile
from jaxflow.types import UserError
from jaxflow.user_code import find_file


def read_function(place: str, arguments: str, batch: bool) -> FunctionFile:
    """Read what "path.py:function" names.

    The function is called as compute_score(data_source=…, solution_str=…, ground_truth=…, extra_info=…, **arguments)
    for each row, or, in a batch, once as compute_score(data_sources=…, solution_strs=…, ground_truths=…,
    extra_infos=…, **arguments) with lists.

    Args:
      place: file and name, as the config gives them.
      arguments: further arguments by name, a JSON object as text; empty: none.
      batch: whether it is called with lists.

    Raises:
      UserError: the file is missing or not Python's, or the arguments are not such an object.
    """
    path, name = find_file(place, "reward.function", "reward")
    source = path.read_bytes().decode("utf-8", "surrogateescape")
    return FunctionFile(path, name, source, read_arguments(arguments), batch)


def read_arguments(text: str) -> Mapping[str, object]:
    """Read the further arguments of the function; `UserError` if they are not a JSON object."""
    if not text.strip():
        return {}
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"reward.function_arguments is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise UserError(
            f'reward.function_arguments must be a JSON object such as {{"strict": true}}: {text!r}'
        )
    return arguments
