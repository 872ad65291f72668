"""Python files of the user's that a config names as "path.py:name".

Knows how to run such a file and find a name in it. Does not know what the name should be, and calls nothing.
"""

from __future__ import annotations

import pathlib

from jaxflow.source_file import SourceError, run_source
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
    path, name = find_file(place, key, kind)
    try:
        names = run_source(path, path.read_bytes(), kind)
    except SourceError as error:
        raise UserError(str(error)) from error
    if name not in names:
        raise UserError(no_such_name(path, name, key))
    return names[name]


def find_file(place: str, key: str, kind: str) -> tuple[pathlib.Path, str]:
    """Split "path.py:name" into the path of a file that is there and the name; raises as `load_from_file`."""
    file, _, name = place.rpartition(":")
    if not file or not name:
        raise UserError(f"{key} is {place!r}; write it as path.py:name")
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"{kind} file {file!r} does not exist; check {key}")
    if path.suffix != ".py":
        raise UserError(f"{kind} file {file!r} is not a Python file; it must end in .py")
    return path, name


def no_such_name(path: pathlib.Path, name: str, key: str) -> str:
    """Say that a file lacks the name that it was asked for."""
    return f"{path}: no {name!r} there; {key} must give a name that the file defines"
