"""What in a placement cannot be: roles without a pool, meshes that do not fit, weights and rows that do not split.

Knows pools, models and sizes of batches. The package asks it and adds everything else about a config.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence

from jaxflow.batch_algebra import sequences_per_step, with_vocabulary
from jaxflow.config import Config, PoolConfig
from jaxflow.engine.layout_rules import Parallelism, layout_problems, nearest_layouts
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.placement import (
    ACCELERATORS,
    CRITICS,
    VALIDATING,
    MeshSizes,
    generating_role,
    mesh_sizes,
    role_adapters,
    roles_with_models,
    taught_judges,
)

_NAMED_MESHES, _NAMED_SIZES = 3, 4  # offered where one cannot be


def role_problems(config: Config, cast: Sequence[str]) -> Iterator[str]:
    """Say which roles of the algorithm stand in no pool or in several, and which no algorithm knows."""
    pools, rule = config.cluster.pools, config.algorithm.name
    found: dict[str, list[str]] = {role: [] for role in cast}
    for name, pool in pools.items():
        if not pool.roles:
            yield f"cluster.pools.{name}.roles is empty: give the pool a role, or take it away"
        for role in pool.roles:
            meant = role if role in cast else next(iter(difflib.get_close_matches(role, cast, n=1)), "")
            if meant != role:
                hint = f"did you mean {meant!r}? " if meant else ""
                yield (
                    f"cluster.pools.{name}.roles: {role!r} is no role of {rule}: {hint}"
                    f"it has: {', '.join(cast)}"
                )
            if meant:
                found[meant].append(name)
    for role, names in found.items():
        if not names:
            yield (
                f"cluster.pools: {rule} needs a role {role}, and no pool has it; add it to the roles of one of:"
                f" {', '.join(pools) or 'your pools (there are none)'}"
            )
        if len(names) > 1:
            yield f"cluster.pools: the role {role} stands in {' and '.join(names)}; leave it in one of them"


def offload_problems(config: Config) -> Iterator[str]:
    """Say which roles are to wait in host memory that are not in the pool, or have nothing to wait with."""
    holders = [role for role in roles_with_models(config) if role != "generator"]  # whose weights come anew
    for name, pool in config.cluster.pools.items():
        for role in pool.offload:
            key = f"cluster.pools.{name}.offload: {role!r}"
            if role not in pool.roles:
                yield f"{key} is not in the pool, which has: {', '.join(pool.roles)}; name roles of this pool"
            elif role not in holders:
                yield f"{key} holds no weights that could wait in host memory; leave it out"


def scoring_layout_problems(config: Config) -> Iterator[str]:
    """Say which roles cannot score in the generation layout of their pool."""
    parts, sequences = config.rollout.parts, sequences_per_step(config)
    holders = [role for role in roles_with_models(config) if role != "generator"]
    for name, pool in config.cluster.pools.items():
        mesh = pool.mesh
        for role in pool.generation_scoring:
            key = f"cluster.pools.{name}.generation_scoring: {role!r}"
            if role not in pool.roles or role not in holders:
                yield f"{key} is no model of the pool; name some of: {', '.join(r for r in pool.roles if r in holders)}"
            elif role in taught_judges(config) or role_adapters(config, role) is not None:
                yield f"{key} is taught or has adapters: its weights do not move for a pass; leave it out"
            elif role == "actor" and config.algorithm.kl.exact_in_rewards:
                yield f"{key} scores beside a reference that stays in the training layout; leave it out"
            elif pool.hosts > 1 and pool.devices_per_host % (mesh.tensor * mesh.pipe) != 0:
                yield (
                    f"{key}: the {mesh.tensor * mesh.pipe} devices of tensor × pipe span hosts of"
                    f" {pool.devices_per_host}, whose rows would be others'; leave it out"
                )
            elif pool.hosts > 1 and role in VALIDATING:
                yield (
                    f"{key} also judges validation rows, which several hosts cut as in training; leave it out, or"
                    " give the pool one host"
                )
            elif mesh.tensor % mesh.generation_tensor == 0:
                replicas = mesh_sizes(mesh).generation_replicas
                if sequences % (parts * replicas) != 0:
                    yield (
                        f"{key}: {sequences} sequences of a step in {parts} parts cannot be split over"
                        f" {replicas} generation replicas of the pool; make it a multiple, or leave the role out"
                    )


def mesh_problems(config: Config, devices_available: int | None) -> Iterator[str]:
    """Say which meshes are not those of their pool's devices, and whether this machine has too few.

    `devices_available` is None where nobody knows; a Ray that is joined may have devices elsewhere.
    """
    cluster = config.cluster
    for name, pool in cluster.pools.items():
        path, mesh, devices = f"cluster.pools.{name}", pool.mesh, pool.hosts * pool.devices_per_host
        product = mesh.data * mesh.fsdp * mesh.expert * mesh.pipe * mesh.tensor
        if product != devices:
            yield (
                f"{path}.mesh: data {mesh.data} × fsdp {mesh.fsdp} × expert {mesh.expert} × pipe {mesh.pipe} × tensor"
                f" {mesh.tensor} = {product} devices, but hosts {pool.hosts} × devices_per_host"
                f" {pool.devices_per_host} = {devices}; change one of them"
            )
        for axis, whole, part in (
            ("tensor", mesh.tensor, mesh.generation_tensor),
            ("pipe", mesh.pipe, mesh.generation_pipe),
        ):
            if part > 0 and whole > 0 and whole % part != 0:
                yield (
                    f"{path}.mesh.generation_{axis} = {part} does not divide {path}.mesh.{axis} = {whole}; set it to"
                    f" one of: {', '.join(map(str, divisors(whole)))}"
                )
    devices = sum(pool.hosts * pool.devices_per_host for pool in cluster.pools.values())
    if devices_available is not None and not cluster.address and devices > devices_available:
        yield (
            f"cluster.pools ask for {devices} devices, but this machine has {devices_available}"
            f" ({cluster.platform}); make them smaller, or set cluster.address to a Ray of several machines; the same"
            " command with --plan says what would run on them"
        )


def device_problems(config: Config) -> Iterator[str]:
    """Say which pools name a kind of devices that no host can be told by."""
    cluster = config.cluster
    named = {name: pool.device for name, pool in cluster.pools.items() if pool.device}
    if not named or cluster.platform != "gpu":
        return
    known = ", ".join(ACCELERATORS)
    for name, kind in named.items():
        if kind not in ACCELERATORS:
            yield (
                f"cluster.pools.{name}.device = {kind!r}: Ray tells hosts apart by {known}; name one of them, or"
                " leave it empty where all hosts have the same devices"
            )
    kind = cluster.devices.kind
    if len(named) < len(cluster.pools) and kind not in ACCELERATORS:
        yield (
            f"cluster.devices.kind = {kind!r}: pools that name no device of their own have this kind beside"
            f" {', '.join(named.values())}, and Ray tells hosts apart by {known}; name one of them"
        )


def sharding_problems(config: Config, vocabulary_size: int | None) -> Iterator[str]:
    """Say which dimensions of a role's weights the mesh of its pool cannot split."""
    asked = {}  # several roles of one pool may hold the same model
    for role, pool in _pools_of_models(config).items():
        path, model = _model_of(config, role)
        asked[path, pool] = model
    for (path, pool), model in asked.items():
        known = with_vocabulary(model, 0 if vocabulary_size is None else vocabulary_size)
        sizes = config.cluster.pools[pool]
        problems = layout_problems(_parallelism(sizes), sizes.hosts * sizes.devices_per_host, known)
        # What a mesh alone has wrong is said once, of the mesh.
        for problem in (problem for problem in problems if problem.key):
            fitting = ", ".join(map(str, problem.fitting[:_NAMED_SIZES]))
            yield (
                f"{path}: {problem.message} of pool {pool}; set cluster.pools.{pool}.mesh.{problem.field} to one of"
                f" {fitting}, or {path}.{problem.mend}{_nearest_meshes(sizes, known)}"
            )


def _parallelism(pool: PoolConfig) -> Parallelism:
    mesh = pool.mesh
    return Parallelism(
        mesh.data,
        mesh.fsdp,
        mesh.tensor,
        mesh.generation_tensor,
        pipe=mesh.pipe,
        generation_pipe=mesh.generation_pipe,
        expert=mesh.expert,
    )


def _nearest_meshes(pool: PoolConfig, model: DecoderConfig) -> str:
    """Name the meshes nearest to a pool's that can hold the model on its devices."""
    devices = pool.hosts * pool.devices_per_host
    can_be = [
        f"data {one.data} × fsdp {one.fsdp} × expert {one.expert} × pipe {one.pipe} × tensor {one.tensor},"
        f" generation_tensor {one.generation_tensor}, generation_pipe {one.generation_pipe}"
        for one in nearest_layouts(_parallelism(pool), devices, model, _NAMED_MESHES)
    ]
    return f"; nearest meshes that can be: {' | '.join(can_be)}" if can_be else ""


def row_problems(config: Config) -> Iterator[str]:
    """Say which numbers of rows the devices of a pool cannot share equally."""
    placed = _pools_of_models(config)
    meshes = {name: mesh_sizes(pool.mesh) for name, pool in config.cluster.pools.items()}
    sequences, product = sequences_per_step(config), _product(config)
    settings = {"actor": ("actor", config.actor), **{role: ("critic", config.critic) for role in CRITICS}}
    settings |= {role: (role, vars(config)[role]) for role in taught_judges(config)}
    for role, (key, of_role) in settings.items():
        if role in placed:
            size = of_role.minibatch_sequences
            yield from _minibatch_problems(config, key, size, placed[role], meshes[placed[role]])
    updated = {placed[role] for role in settings if role in placed}
    for pool in dict.fromkeys(pool for pool in placed.values() if pool not in updated):
        if sequences % meshes[pool].training_replicas != 0:
            yield (
                f"{product} = {sequences} sequences per step cannot be split over the {_replicas(pool, meshes)};"
                " make it a multiple"
            )
    generating = generating_role(config)
    if generating in placed:
        mesh = meshes[placed[generating]]
        # A mesh whose generation size does not divide is reported already.
        asked = config.cluster.pools[placed[generating]].mesh
        whole = (mesh.training_tensor, mesh.stages) == (asked.tensor, asked.pipe)
        if whole and sequences % mesh.generation_replicas != 0:
            yield (
                f"{product} = {sequences} sequences per step cannot be split over the {mesh.generation_replicas}"
                f" generation replicas of pool {placed[generating]} (data × fsdp × expert × pipe / generation_pipe"
                " × tensor / generation_tensor); make it a multiple"
            )
        elif whole and config.rollout.parts > 1:
            pools = [meshes[pool].training_replicas for pool in placed.values()]
            yield from _part_problems(config, math.lcm(mesh.generation_replicas, *pools))
    warm_start = config.warm_start
    for role, steps in (("actor", warm_start.steps), ("reward", warm_start.reward_steps)):
        if steps > 0 and role in placed:
            replicas = meshes[placed[role]].training_replicas
            if warm_start.sequences_per_step % replicas != 0:
                yield (
                    f"warm_start.sequences_per_step = {warm_start.sequences_per_step} is not a multiple of the"
                    f" {_replicas(placed[role], meshes)}, where the {role} learns; make it one"
                )


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def _minibatch_problems(config: Config, role: str, size: int, pool: str, mesh: MeshSizes) -> Iterator[str]:
    sequences, product = sequences_per_step(config), _product(config)
    fitting = [fit for fit in divisors(sequences) if fit % mesh.training_replicas == 0]
    if size not in fitting:
        nearest = min(fitting, key=lambda fit: abs(fit - size), default=None)
        mend = f"set it to {nearest}" if nearest is not None else f"no size does both: change {product}"
        yield (
            f"{role}.minibatch_sequences = {size} sequences over all devices: must divide the {sequences}"
            f" sequences of a step ({product}) and be a multiple of the {_replicas(pool, {pool: mesh})}; {mend}"
        )


def _part_problems(config: Config, multiple: int) -> Iterator[str]:
    """Say whether the parts of a step are equal and each a multiple of every pool's replicas."""
    sequences, parts = sequences_per_step(config), config.rollout.parts
    fitting = [fit for fit in divisors(sequences) if sequences // fit % multiple == 0]
    # Where one part does not fit either, the sizes of the step are what is wrong, and reported.
    if fitting and parts not in fitting:
        yield (
            f"rollout.parts = {parts}: the {sequences} sequences of a step must give equal parts, each a multiple"
            f" of {multiple}, so that every pool's replicas share it; set it to"
            f" {min(fitting, key=lambda fit: abs(fit - parts))}"
        )


def _pools_of_models(config: Config) -> dict[str, str]:
    """Return role -> pool of the roles that hold a model and are placed; the first pool counts."""
    pools = config.cluster.pools.items()
    first = {
        role: [name for name, pool in pools if role in pool.roles][:1] for role in roles_with_models(config)
    }
    return {role: names[0] for role, names in first.items() if names}


def _model_of(config: Config, role: str) -> tuple[str, DecoderConfig]:
    """Return the config key of a role's model, where its shape is written, and the model."""
    if role in CRITICS and config.critic.model is not None:
        return "critic.model", config.critic.model
    if role == "reward" and config.reward.model is not None:
        return "reward.model", config.reward.model
    if role == "cost" and config.cost.model is not None:
        return "cost.model", config.cost.model
    return "actor.model", config.actor.model


def _product(config: Config) -> str:
    return (
        f"data.prompts_per_step {config.data.prompts_per_step} × "
        f"rollout.samples_per_prompt {config.rollout.samples_per_prompt}"
    )


def _replicas(pool: str, meshes: dict[str, MeshSizes]) -> str:
    return f"{meshes[pool].training_replicas} training replicas of pool {pool} (data × fsdp × expert)"
