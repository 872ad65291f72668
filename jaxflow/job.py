"""What a run is made of once its config is checked and its data read. Knows nothing of what is done with it."""

from __future__ import annotations

import dataclasses

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.data.source import Source
from jaxflow.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, before anything of it has happened."""

    config: Config
    derived: Derived
    tokenizer: Tokenizer
    source: Source
