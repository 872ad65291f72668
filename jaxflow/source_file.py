"""Running one Python file of the user's as a module of its own, and the line at which that failed.

Imports the standard library alone: processes that must start fast, or hold nothing of ours, use it too.
"""

from __future__ import annotations

import pathlib
import sys
import traceback
import types
import zlib
from collections.abc import Mapping


class SourceError(Exception):
    """Running the file failed; the message begins with file:line."""


def run_source(path: pathlib.Path, source: bytes, kind: str) -> Mapping[str, object]:
    """Run the text of a file as a module and give its names; once in a process while path and text are the same.

    Args:
      path: of the file, for messages, `__file__` and the module's name.
      source: what the file says.
      kind: what the file is for, in a word, for messages.

    Raises:
      SourceError: it does not compile, or running it raises or ends the process.
    """
    # The same in every process, so that what one of them makes of the file's classes another understands; of the
    # whole path, so that two files of one name do not meet; and of what it says.
    identity = zlib.crc32(source, zlib.crc32(str(path.resolve()).encode()))
    module_name = f"jaxflow_user_{path.stem}_{identity:08x}"
    if module_name in sys.modules:
        return vars(sys.modules[module_name])
    module = types.ModuleType(module_name)
    module.__file__ = str(path.resolve())
    # Dataclasses look their module up while it is being run.
    sys.modules[module_name] = module
    try:
        exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        del sys.modules[module_name]
        if not isinstance(error, Exception | SystemExit):  # Ctrl-C is not the file's doing
            raise
        message = f"{type(error).__name__}: {error}"
        raise SourceError(
            f"{path}:{_line(error, module.__file__)}: importing the {kind} file failed: {message}"
        ) from error
    return vars(module)


def _line(error: BaseException, file: str) -> int:
    """Find the line of the file at which it failed; 1 if it never came to run a line of it."""
    if isinstance(error, SyntaxError) and error.filename == file and error.lineno is not None:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file and frame.lineno is not None]
    return lines[-1] if lines else 1
