"""What in the cluster's address cannot be. Connects to nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from jaxflow.config import Config


def address_problems(config: Config) -> Iterator[str]:
    address = config.cluster.address
    if not address:
        return
    if re.fullmatch(r"auto|[^/\s]+:\d+", address) is None:
        yield f"cluster.address = {address!r}: must be empty, auto or host:port"
    if config.cluster.launcher == "inprocess":
        yield (
            f"cluster.address = {address!r}: the launcher inprocess starts no workers elsewhere; set the address"
            " to '' or cluster.launcher to ray"
        )
