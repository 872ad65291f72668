"""An actor that plays and does not learn: what a dataflow is given while the critic warms up. Knows no transport."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxflow.types import Metrics
from jaxflow.workers.group import WorkerGroup
from jaxflow.workers.weight_exchange import ServedActor


@dataclasses.dataclass(frozen=True)
class NothingLearnt:
    """The metrics of an update that was not made."""

    def result(self) -> Metrics:
        """Return none."""
        return {}


class StillActor:
    """The actor as a dataflow sees it before it is its turn to learn."""

    def __init__(self, actor: WorkerGroup | ServedActor):
        """Answer as `actor` does."""
        own = vars(type(self))
        members = {name: getattr(actor, name) for name in actor.methods if name not in own}
        self.__dict__.update(members)

    def update(self, *batches: Any) -> NothingLearnt:
        """Leave the policy as it is."""
        return NothingLearnt()
