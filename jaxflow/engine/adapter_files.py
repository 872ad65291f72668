"""What lies beside saved adapters: which they are, and where the weights are that they stand beside.

A checkpoint of a model with adapters holds these and what is trained; the base is read again from where it came.
"""

from __future__ import annotations

import dataclasses
import json
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
    """Write it beside the arrays."""
    (directory / _FILE).write_text(json.dumps(dataclasses.asdict(note), indent=1), encoding="utf-8")


def read_note(directory: Path) -> AdapterNote:
    """Read it again; UserError where there is none or it is damaged."""
    file = directory / _FILE
    if not file.is_file():
        raise UserError(f"{file}: is not there: what was saved here has no adapters; set lora.rank to 0")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        adapters = Adapters(**{**tree["adapters"], "targets": tuple(tree["adapters"]["targets"])})
        return AdapterNote(adapters, tree["base"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: could not be read, it is damaged: {error}") from error
