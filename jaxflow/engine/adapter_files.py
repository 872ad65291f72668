"""What lies beside saved adapters: which they are, and where the weights are that they stand beside.

A checkpoint of a model with adapters holds these and what is trained; the base is read again from where it came.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from jaxflow.models.adapters import Adapters
from jaxflow.types import UserError

_FILE = "adapters.json"


@dataclasses.dataclass(frozen=True)
class AdapterNote:
    """What saved adapters belong to."""

    adapters: Adapters
    base: str  # directory of the weights beside them; empty: random ones, of the run's seed


def holds_adapters(directory: Path) -> bool:
    """Return whether a directory is one of adapters."""
    return (directory / _FILE).is_file()


def write_note(directory: Path, note: AdapterNote) -> None:
    """Write it beside the arrays; also where the base is from here, so that both may be moved together."""
    tree = dataclasses.asdict(note)
    if note.base:
        tree["base"] = str(Path(note.base).absolute())
        tree["base_from_here"] = os.path.relpath(note.base, directory)
    (directory / _FILE).write_text(json.dumps(tree, indent=1), encoding="utf-8")


def read_note(directory: Path) -> AdapterNote:
    """Read it again; UserError where there is none or it is damaged."""
    file = directory / _FILE
    if not file.is_file():
        raise UserError(f"{file}: is not there: what was saved here has no adapters; set lora.rank to 0")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        adapters = Adapters(**{**tree["adapters"], "targets": tuple(tree["adapters"]["targets"])})
        base = tree["base"]
        if base and (directory / tree["base_from_here"]).is_dir():
            base = os.path.normpath(directory / tree["base_from_here"])
        return AdapterNote(adapters, base)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: could not be read, it is damaged: {error}") from error
