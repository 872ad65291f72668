"""The smallest changes to a config that make it fit its devices. Each is tried, and named only where it does.

Knows configs and plans. Changes nothing by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from jaxflow.batch_algebra import longest_sequence_tokens
from jaxflow.config import Config, MeshConfig
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.engine.layout_rules import nearest_layouts
from jaxflow.mapping.asked import decoders, parallelism, profile_of
from jaxflow.mapping.auto import mappings_of
from jaxflow.mapping.devices import DEVICES
from jaxflow.mapping.plan import fits, make_plan

_MOST_HOSTS = 512  # that are tried
_LAYOUTS_TRIED = 200


@dataclasses.dataclass(frozen=True)
class Mend:
    """A change that makes a config fit."""

    change: str
    config: Config


def mends(config: Config, vocabulary_size: int, roles: Sequence[str]) -> list[Mend]:
    """Return changes of one kind each that make the config fit, the smallest of each kind."""

    def fitting(changed: Config) -> bool:
        if changed.cluster.mapping == "auto":
            return bool(mappings_of(changed, vocabulary_size, roles))
        return fits(changed, vocabulary_size, roles)

    found = []
    for kind in (_smaller_passes, _fewer_rows, _cheaper_numbers, _everything_smaller):
        found += _first(kind(config), fitting)
    if config.cluster.mapping == "pools":
        found += _first(_offloaded(config, vocabulary_size, roles), fitting)
        found += _first(_other_meshes(config, vocabulary_size, roles), fitting)
    found += _first(_more_hosts(config), fitting)
    found += _first(_larger_devices(config), fitting)
    return found


def _first(candidates: Iterator[Mend], fitting: Callable[[Config], bool]) -> list[Mend]:
    return next(([mend] for mend in candidates if fitting(mend.config)), [])


def _longest(config: Config) -> int:
    return ladder(longest_sequence_tokens(config) + 2, LENGTH_UNIT)


def _halved(start: int, least: int) -> Iterator[int]:
    size = start // 2
    while size > least:
        yield size
        size //= 2
    if start > least:
        yield least


def _with_passes(config: Config, tokens: int) -> Config:
    """Return the config with no pass of more than so many tokens."""
    return dataclasses.replace(
        config,
        actor=dataclasses.replace(
            config.actor, microbatch_tokens_per_device=min(tokens, config.actor.microbatch_tokens_per_device)
        ),
        critic=dataclasses.replace(
            config.critic,
            microbatch_tokens_per_device=min(tokens, config.critic.microbatch_tokens_per_device),
        ),
        rollout=dataclasses.replace(
            config.rollout,
            score_microbatch_tokens_per_device=min(tokens, config.rollout.score_microbatch_tokens_per_device),
        ),
    )


def _smaller_passes(config: Config) -> Iterator[Mend]:
    largest = max(
        config.actor.microbatch_tokens_per_device,
        config.critic.microbatch_tokens_per_device,
        config.rollout.score_microbatch_tokens_per_device,
    )
    for tokens in _halved(largest, _longest(config)):
        yield Mend(
            f"at most {tokens:,} tokens in actor., critic.microbatch_tokens_per_device and"
            " rollout.score_microbatch_tokens_per_device",
            _with_passes(config, tokens),
        )


def _with_rows(config: Config, rows: int) -> Config:
    return dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, sequences_per_device=rows))


def _fewer_rows(config: Config) -> Iterator[Mend]:
    for rows in _halved(config.rollout.sequences_per_device, 1):
        yield Mend(f"rollout.sequences_per_device = {rows}", _with_rows(config, rows))


def _cheaper_numbers(config: Config) -> Iterator[Mend]:
    if config.rollout.dtype != "bfloat16":
        changed = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, dtype="bfloat16"))
        yield Mend("rollout.dtype = bfloat16", changed)
    if not config.actor.model.remat:
        model = dataclasses.replace(config.actor.model, remat=True)
        changed = dataclasses.replace(config, actor=dataclasses.replace(config.actor, model=model))
        yield Mend("actor.model.remat = True", changed)


def _everything_smaller(config: Config) -> Iterator[Mend]:
    least = _longest(config)
    for rows in _halved(2 * config.rollout.sequences_per_device, 1):
        yield Mend(
            f"one sequence per pass ({least:,} tokens) and rollout.sequences_per_device = {rows}, together",
            _with_rows(_with_passes(config, least), rows),
        )


def _offloaded(config: Config, vocabulary_size: int, roles: Sequence[str]) -> Iterator[Mend]:
    """Yield the config with ever more of a full pool's roles waiting in host memory, the largest first."""
    for pool in make_plan(config, vocabulary_size, roles).pools:
        models = sorted(pool.models, key=lambda model: -model.rest.total)
        for count in range(1, len(models) + 1):
            waiting = tuple(model.role for model in models[:count])
            changed = dataclasses.replace(config.cluster.pools[pool.name], offload=waiting)
            pools = {**config.cluster.pools, pool.name: changed}
            yield Mend(
                f"cluster.pools.{pool.name}.offload = {', '.join(waiting)}",
                dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, pools=pools)),
            )


def _other_meshes(config: Config, vocabulary_size: int, roles: Sequence[str]) -> Iterator[Mend]:
    """Yield the config with another mesh on each pool that is too full, the nearest first."""
    models = decoders(config, vocabulary_size)
    for name in make_plan(config, vocabulary_size, roles).excess:
        pool = config.cluster.pools[name]
        asked, devices = parallelism(pool.mesh), pool.hosts * pool.devices_per_host
        decoder = next(models[role] for role in pool.roles if role in models)
        for near in nearest_layouts(asked, devices, decoder, _LAYOUTS_TRIED):
            mesh = MeshConfig(
                data=near.data,
                fsdp=near.fsdp,
                tensor=near.tensor,
                generation_tensor=near.generation_tensor,
                pipe=near.pipe,
                generation_pipe=near.generation_pipe,
                expert=near.expert,
            )
            changed = dataclasses.replace(pool, mesh=mesh)
            yield Mend(
                f"cluster.pools.{name}.mesh: data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor},"
                f" generation_tensor {mesh.generation_tensor}, pipe {mesh.pipe}, generation_pipe"
                f" {mesh.generation_pipe}, expert {mesh.expert}",
                dataclasses.replace(
                    config,
                    cluster=dataclasses.replace(
                        config.cluster, pools={**config.cluster.pools, name: changed}
                    ),
                ),
            )


def _more_hosts(config: Config) -> Iterator[Mend]:
    """Yield more hosts: of `cluster.devices`, or of every pool, whose weights they share."""
    cluster = config.cluster
    factor = 2
    while factor <= _MOST_HOSTS:
        if cluster.mapping == "auto":
            devices = dataclasses.replace(cluster.devices, hosts=cluster.devices.hosts * factor)
            changed = dataclasses.replace(cluster, devices=devices)
            yield Mend(
                f"cluster.devices.hosts = {devices.hosts}", dataclasses.replace(config, cluster=changed)
            )
        else:
            pools = {
                name: dataclasses.replace(
                    pool,
                    hosts=pool.hosts * factor,
                    mesh=dataclasses.replace(pool.mesh, fsdp=pool.mesh.fsdp * factor),
                )
                for name, pool in cluster.pools.items()
            }
            changed = dataclasses.replace(cluster, pools=pools)
            yield Mend(
                f"{factor} times the hosts of every pool, their mesh.fsdp with them",
                dataclasses.replace(config, cluster=changed),
            )
        factor *= 2


def _larger_devices(config: Config) -> Iterator[Mend]:
    """Yield kinds of devices with more memory, the smallest first."""
    now = profile_of(config).memory_bytes
    larger = [profile for profile in DEVICES.values() if profile.memory_bytes > now]
    for profile in sorted(larger, key=lambda one: one.memory_bytes):
        devices = dataclasses.replace(config.cluster.devices, kind=profile.kind)
        yield Mend(
            f"devices of {profile.memory_bytes / 1e9:.0f} GB (cluster.devices.kind = {profile.kind})",
            dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, devices=devices)),
        )
