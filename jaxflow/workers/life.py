"""The life of a role's own weights, the same for every role that trains: how they begin, are kept, are handed on.

Knows a trained model; no algorithm, no transport, and not what is learnt.
"""

from __future__ import annotations

from pathlib import Path

from jaxflow.models.weights_in import ReadReport
from jaxflow.workers.protocol import exposed
from jaxflow.workers.trained import TrainedModel
from jaxflow.workers.transfer import ONE_TO_ALL


class Begun:
    """Weights that may begin at random."""

    _trained: TrainedModel

    @exposed("load", ONE_TO_ALL)
    def create(self) -> None:
        """Start from random weights."""
        self._trained.create()


class OnBackbone(Begun):
    """Those of a scalar model, which may begin from the policy's."""

    @exposed("load", ONE_TO_ALL)
    def load_backbone(self, directory: str) -> ReadReport | None:
        """Start from a policy's saved weights or a checkpoint under a head that predicts zero."""
        return self._trained.load_backbone(Path(directory))


class Saved:
    """Weights that are kept with all that the next step depends on."""

    _trained: TrainedModel

    @exposed("load", ONE_TO_ALL)
    def load(self, directory: str) -> ReadReport | None:
        """Start from saved weights or a checkpoint."""
        return self._trained.load(Path(directory))

    @exposed("save_checkpoint", ONE_TO_ALL)
    def save(self, directory: str) -> None:
        """Write all state that the next step depends on."""
        self._trained.save(Path(directory))

    @exposed("load", ONE_TO_ALL)
    def restore(self, directory: str) -> None:
        """Continue from what `save` wrote."""
        self._trained.restore(Path(directory))


class HandedOn:
    """Weights that another role begins from or judges with."""

    _trained: TrainedModel

    @exposed("save_checkpoint", ONE_TO_ALL)
    def save_weights(self, directory: str) -> None:
        """Write the weights alone."""
        self._trained.save_weights(Path(directory))
