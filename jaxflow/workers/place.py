"""Where a role lives: what its process gives it beside config and arguments. Knows no role and no transport."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from jax.sharding import Mesh

from jaxflow.engine.offload import Moved
from jaxflow.engine.sharding import Layout, generation_layout, training_layout
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.types import OFFLOAD_SPAN


@dataclasses.dataclass
class Inner:
    """Something worth a span inside a call; whoever does it fills in the bytes."""

    name: str
    started: float  # seconds since the epoch
    seconds: float = 0.0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Place:
    """The mesh of a role's pool, and the notebook of what its calls spent time on."""

    mesh: Mesh
    offload: bool = False  # what the role does not use at the moment waits in host memory
    generation_scoring: bool = False  # it scores in the generation layout
    inner: list[Inner] = dataclasses.field(default_factory=list)

    def scoring_layout(self, model: DecoderConfig) -> Layout:
        """Return the layout in which the role scores."""
        if self.generation_scoring:
            return generation_layout(self.mesh, model)
        return training_layout(self.mesh, model)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[Inner]:
        """Note a stretch of the current call in the run's timeline."""
        noted = Inner(name, time.time())
        yield noted
        noted.seconds = time.time() - noted.started
        self.inner.append(noted)

    def note_offload(self, *moves: Moved | None) -> None:
        """Note moves between host and devices that just ended; None was none."""
        for moved in (one for one in moves if one is not None):
            ended = time.time()
            self.inner.append(Inner(OFFLOAD_SPAN, ended - moved.seconds, moved.seconds, moved.bytes))
