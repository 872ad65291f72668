"""`cluster.mapping = "auto"`: a config whose pools are the search's answer. What it returns is what a run runs.

Knows configs and searches. Starts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Named
from collections.abc import Sequence

from jaxflow.config import ClusterConfig, Config, MeshConfig, PoolConfig
from jaxflow.mapping.asked import described, engine_of, groups_of, loads_of, workload_of
from jaxflow.mapping.layouts import Freedom
from jaxflow.mapping.search import Mapping, Problem, search
from jaxflow.types import UserError

FREEDOM = Freedom(pipe=True, fsdp=True, offload=True)
"""What a run can be asked for in its config."""

WANTED = 4
"""The chosen mapping and three runners-up."""


def problem_of(config: Config, vocabulary_size: int, roles: Sequence[str]) -> Problem:
    """Return the search that a config and the roles that play in it amount to."""
    return Problem(
        loads_of(config, vocabulary_size, roles),
        workload_of(config),
        groups_of(config),
        engine_of(config),
        FREEDOM,
    )


def mappings_of(config: Config, vocabulary_size: int, roles: Sequence[str]) -> tuple[Mapping, ...]:
    """Return the fastest mappings of a config's roles on its devices; empty where nothing fits."""
    return search(problem_of(config, vocabulary_size, roles), WANTED)


def resolve(config: Config, roles: Sequence[str], mapping: Mapping) -> Config:
    """Return the config with the mapping as its pools and the rows that fit as its rounds of generation."""
    pools = pools_of(mapping, roles, config.cluster)
    rows = max(placed.option.rows for placed in mapping.sets)
    return dataclasses.replace(
        config,
        cluster=dataclasses.replace(config.cluster, pools=pools),
        rollout=dataclasses.replace(config.rollout, sequences_per_device=rows),
    )


def chosen(config: Config, vocabulary_size: int, roles: Sequence[str]) -> Config:
    """Return the config that a run with `cluster.mapping = "auto"` runs.

    Raises UserError where no mapping fits the devices.
    """
    found = mappings_of(config, vocabulary_size, roles)
    if not found:
        raise UserError(
            f"cluster.mapping = 'auto': no mapping of {', '.join(roles)} fits {described(groups_of(config))}; the"
            " same command with --plan says by how many bytes, and what would make it fit"
        )
    return resolve(config, roles, found[0])


def pools_of(mapping: Mapping, roles: Sequence[str], cluster: ClusterConfig) -> Named[str, PoolConfig]:
    """Return a mapping onto a cluster's devices as pools by name; roles without a model stand where values are
    estimated."""
    kinds = (cluster.devices, *cluster.more_devices.values())
    modelled = {role for placed in mapping.sets for role in placed.roles}
    modelless = tuple(role for role in roles if role not in modelled)
    home = next((placed for placed in mapping.sets if "critic" in placed.roles), mapping.sets[0])
    pools = {}
    for placed in mapping.sets:
        layout, devices = placed.option.layouts[0], placed.option.devices
        held = (*placed.roles, *(modelless if placed is home else ()))
        name = "main" if len(mapping.sets) == 1 else "_".join(placed.roles)
        kind = kinds[placed.option.group]
        inside = min(devices, kind.devices_per_host)
        pools[name] = PoolConfig(
            roles=held,
            hosts=devices // inside,
            devices_per_host=inside,
            mesh=MeshConfig(
                data=layout.data,
                fsdp=layout.fsdp,
                tensor=layout.tensor,
                generation_tensor=layout.generation_tensor,
                pipe=layout.pipe,
                generation_pipe=layout.generation_pipe,
                expert=layout.expert,
            ),
            offload=placed.roles if placed.option.offload else (),
            generation_scoring=placed.option.generation_scoring,
            device=kind.kind if kind is not cluster.devices else "",
        )
    return pools
