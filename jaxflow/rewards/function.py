"""The reward function: verl's `compute_score` signature, a file of the user's that has one, the built-in one.

Knows how to find a function. Does not know batches, and does not call what it finds.
"""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import sys
import traceback
from collections.abc import Mapping
from typing import Protocol

from jaxflow.types import UserError


class RewardFunction(Protocol):
    """Scores one response; the arguments are passed by name."""

    def __call__(
        self, *, data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object]
    ) -> float | Mapping[str, object]:
        """Give a finite score, or a mapping with `score` and, if it differs, `acc`: the share solved."""


def exact_match(
    data_source: str, solution_str: str, ground_truth: object, extra_info: Mapping[str, object] | None = None
) -> float:
    """Give 1 if the response is the ground truth up to surrounding white space, else 0.

    Raises:
        TypeError: the ground truth is neither text nor a number.
    """
    if not isinstance(ground_truth, str | int | float):
        raise TypeError(
            f"exact_match needs text or a number as ground truth, not {type(ground_truth).__name__}"
        )
    return float(solution_str.strip() == str(ground_truth).strip())


def load_reward_function(place: str) -> RewardFunction:
    """Import the function that "path.py:function" names.

    Raises:
        UserError: the file or the function is missing, importing it fails (the line is named), or it cannot
            be called as a `RewardFunction`.
    """
    file, _, name = place.rpartition(":")
    if not file or not name:
        raise UserError(f"reward.function is {place!r}; write it as path.py:function")
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"reward file {file!r} does not exist; check reward.function")
    functions = _import(path)
    if name not in functions:
        raise UserError(f"{file}: no function {name!r}; reward.function must name one that the file defines")
    function = functions[name]
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise UserError(f"{file}: {name!r} is not a plain function; it must return the score when called")
    try:
        inspect.signature(function).bind(data_source="", solution_str="", ground_truth="", extra_info={})
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{file}: {name!r} cannot be called as {name}(data_source=…, solution_str=…, ground_truth=…, "
            f"extra_info=…): {error}"
        ) from error
    return function


def _import(path: pathlib.Path) -> Mapping[str, object]:
    """Run a Python file as a module and give its names."""
    module_name = f"jaxflow_user_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"reward file {str(path)!r} is not a Python file; it must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it is being run.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        message = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path}:{_line(error, path)}: importing the reward file failed: {message}"
        ) from error
    return vars(module)


def _line(error: BaseException, path: pathlib.Path) -> int:
    """Find the line of the file at which it failed; 1 if it never came to run a line of it."""
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno is not None:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path) and frame.lineno is not None]
    return lines[-1] if lines else 1
