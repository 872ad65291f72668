"""Python files of the user's that a config names as "path.py:name".

Knows how to run such a file and find a name in it. Does not know what the name should be, and calls nothing.
"""

from __future__ import annotations

import pathlib
import sys
import traceback
import zlib
from collections.abc import Mapping
from importlib import util

from jaxflow.types import UserError


def load_from_file(place: str, key: str, kind: str) -> object:
    """Return what "path.py:name" names; a file runs once in a process, again only when it has been edited.

    Args:
      place: file and name, as the config gives them.
      key: of the config, for messages.
      kind: what the file is for, in a word, for messages.

    Raises:
      UserError: the place is not of that form, there is no such file or no such name in it, or running the file
        fails; then the message begins with file:line.
    """
    file, _, name = place.rpartition(":")
    if not file or not name:
        raise UserError(f"{key} is {place!r}; write it as path.py:name")
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"{kind} file {file!r} does not exist; check {key}")
    names = _run(path, kind)
    if name not in names:
        raise UserError(f"{file}: no {name!r} there; {key} must give a name that the file defines")
    return names[name]


def _run(path: pathlib.Path, kind: str) -> Mapping[str, object]:
    """Run a Python file as a module and give its names."""
    # The same in every process, so that what one of them makes of the file's classes another understands; of the
    # whole path, so that two files of one name do not meet; and of what it says.
    identity = zlib.crc32(path.read_bytes(), zlib.crc32(str(path.resolve()).encode()))
    module_name = f"jaxflow_user_{path.stem}_{identity:08x}"
    if module_name in sys.modules:
        return vars(sys.modules[module_name])
    spec = util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{kind} file {str(path)!r} is not a Python file; it must end in .py")
    module = util.module_from_spec(spec)
    # Dataclasses look their module up while it is being run.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if not isinstance(error, Exception | SystemExit):  # Ctrl-C is not the file's doing
            raise
        message = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path}:{_line(error, str(spec.origin))}: importing the {kind} file failed: {message}"
        ) from error
    return vars(module)


def _line(error: BaseException, file: str) -> int:
    """Find the line of the file at which it failed; 1 if it never came to run a line of it."""
    if isinstance(error, SyntaxError) and error.filename == file and error.lineno is not None:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file and frame.lineno is not None]
    return lines[-1] if lines else 1
