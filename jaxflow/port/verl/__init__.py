"""verl's dialect, whole: its keys with their defaults, and the keys of jaxflow that follow from them."""

from __future__ import annotations

from jaxflow.port.table import Dialect
from jaxflow.port.verl import adapters, cluster, corrections, learning, material, offload, rollout, rule
from jaxflow.port.verl.names import ALIASES, OWN_KEYS

VERL = Dialect(
    name="verl",
    keys=(
        *material.KEYS,
        *learning.KEYS,
        *rollout.KEYS,
        *rule.KEYS,
        *adapters.KEYS,
        *corrections.KEYS,
        *cluster.KEYS,
        *offload.KEYS,
        *OWN_KEYS,
    ),
    settings=(
        *cluster.SETTINGS,
        *offload.SETTINGS,
        *material.SETTINGS,
        *learning.SETTINGS,
        *rollout.SETTINGS,
        *rule.SETTINGS,
        *corrections.SETTINGS,
        *adapters.SETTINGS,
    ),
    aliases=ALIASES,
)
