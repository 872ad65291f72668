"""Weights that lie as adapters beside a base: read merged, or as they are, an entry at a time.

Knows files, no command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxflow.engine.adapter_files import AdapterNote, read_note
from jaxflow.engine.checkpoint import SavedArrays
from jaxflow.models.adapters import SUFFIX, product
from jaxflow.models.description import Description, describe_directory
from jaxflow.models.families import SCALAR
from jaxflow.models.tensor_files import DTYPES
from jaxflow.models.weight_names import Weight
from jaxflow.models.weights_out import STORED_DTYPES, Entries
from jaxflow.types import UserError


class Adapted:
    """A folder of adapters."""

    def __init__(self, directory: Path):
        """Read what they are; UserError where nothing is saved there or it is damaged."""
        self.directory = directory
        self.description: Description = describe_directory(directory)
        self.note: AdapterNote = read_note(directory)
        parts = ("backbone", "head") if self.description.head == SCALAR else ("backbone",)
        self._parts: Mapping[str, SavedArrays] = {part: SavedArrays(directory / part) for part in parts}

    @property
    def base(self) -> Path:
        """Return the directory of the weights beside them; UserError where no directory holds them."""
        if not self.note.base:
            raise UserError(f"{self.directory}: its base are random weights that no directory holds")
        return Path(self.note.base)

    def halves(self, weight: Weight, index: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return an entry of reduce and of expand beside a weight."""
        name = "/".join(weight.path[1:]) + SUFFIX
        reduce, expand = (
            self._parts["backbone"].read(f"{name}/{half}", index) for half in ("reduce", "expand")
        )
        return reduce, expand

    def scalar_head(self) -> np.ndarray | None:
        """Return a critic's head [D]; None where tokens are what the model ends in."""
        return self._parts["head"].read("weight", ()) if "head" in self._parts else None

    def merged(self, base: Entries) -> Entries:
        """Return how to read entries of the merged weights, given how to read the base's."""
        adapters, head = self.note.adapters, self.scalar_head()
        kept = DTYPES[STORED_DTYPES[adapters.base_dtype]]

        def entry(weight: Weight, index: tuple[int, ...]) -> np.ndarray:
            if weight.path == ("head", "weight") and head is not None:
                return head
            whole = np.asarray(base(weight, index)).astype(kept).astype(np.float32)
            if weight.path[-1] not in adapters.targets:
                return whole
            return whole + adapters.scale * product(weight.path[-1], *self.halves(weight, index), np.einsum)

        return entry
