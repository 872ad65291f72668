"""Which role lives in which pool, in which layouts, in how many bytes. Arithmetic on a config.

Knows no device and no process, and no algorithm: which roles there must be is checked in `checks`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import jax

from jaxflow.config import Config, LoraConfig, MeshConfig
from jaxflow.dataflow import load_dataflow
from jaxflow.engine.sharding import TABLE, fitting_prefix
from jaxflow.models.adapters import Adapters
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import LanguageModel, Model, Params, ScalarModel, describe
from jaxflow.types import UserError

CRITICS = ("critic", "cost_critic")
"""Roles that learn values: of rewards, of costs. They have one config and one shape, and weights of their own."""

VALIDATING = ("reward", "cost")
"""Roles that also judge the rows of validation, of which there is any number."""

ACCELERATORS = {
    "a100-40": "A100",
    "a100-80": "A100",
    "h100": "H100",
    "h200": "H200",
    "b200": "B200",
    "l40s": "L40S",
}
"""Kinds of devices, as configs name them, that Ray finds on a host by itself, and what it calls them."""

_FLOAT32_BYTES = 4
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class MeshSizes:
    """The axes of a pool's mesh; generation shards weights over `tensor` and rows over the others."""

    data: int
    fsdp: int
    tensor: int  # t_g
    micro: int  # t / t_g
    pipe: int = 1  # p_g
    micro_pipe: int = 1  # p / p_g
    expert: int = 1  # ways that experts are cut, over replicas that see different rows

    @property
    def devices(self) -> int:
        """Count the devices of the mesh."""
        return self.training_replicas * self.stages * self.training_tensor

    @property
    def stages(self) -> int:
        """Return p, the pipeline stages of training and scoring."""
        return self.pipe * self.micro_pipe

    @property
    def training_tensor(self) -> int:
        """Return t, the ways that training and scoring split each weight's tensor axis."""
        return self.tensor * self.micro

    @property
    def training_replicas(self) -> int:
        """Count the groups of devices that the rows of training and scoring are split over."""
        return self.data * self.fsdp * self.expert

    @property
    def generation_replicas(self) -> int:
        """Count the groups of devices that the rows of generation are split over."""
        return self.training_replicas * self.micro_pipe * self.micro


@dataclasses.dataclass(frozen=True)
class PoolPlan:
    """One pool: the roles that take turns on its devices, and how those are arranged."""

    roles: tuple[str, ...]
    hosts: int  # worker processes; process p owns the p-th run of devices in mesh order
    devices_per_host: int
    mesh: MeshSizes
    offload: tuple[str, ...] = ()  # roles whose frozen weights or optimizer state wait in host memory
    generation_scoring: tuple[str, ...] = ()  # roles that score in the generation layout


@dataclasses.dataclass(frozen=True)
class RoleBytes:
    """What one role keeps on each device of its pool, in bytes; activations and caches come on top."""

    # float32 masters, N / (t · p · fsdp); beside adapters the others in the dtype they are kept in
    weights: int
    # float32 gradient and two Adam moments of what is trained, 3 N / (t · p · fsdp); 0 if nothing is
    training: int
    rollout: int  # copy in the rollout's dtype, N / (t_g · p_g); 0 for a model that does not generate


def mesh_sizes(mesh: MeshConfig) -> MeshSizes:
    """Return the mesh with each parallel size of training split into generation's part and the rest."""
    tensor, pipe = mesh.generation_tensor, mesh.generation_pipe
    micro, micro_pipe = mesh.tensor // tensor, mesh.pipe // pipe
    return MeshSizes(mesh.data, mesh.fsdp, tensor, micro, pipe, micro_pipe, mesh.expert)


def plan_pools(config: Config) -> dict[str, PoolPlan]:
    """Return the pools of a config that `check` accepts, by name."""
    return {
        name: PoolPlan(
            pool.roles,
            pool.hosts,
            pool.devices_per_host,
            mesh_sizes(pool.mesh),
            pool.offload,
            pool.generation_scoring,
        )
        for name, pool in config.cluster.pools.items()
    }


def accelerators(config: Config) -> dict[str, str]:
    """Return what Ray calls the devices that each pool's hosts must have, by pool; empty: any will do.

    Where one pool names a kind of its own, the others must not take its hosts: they get the cluster's kind.
    """
    cluster = config.cluster
    mixed = cluster.platform == "gpu" and any(pool.device for pool in cluster.pools.values())
    kinds = {name: pool.device or cluster.devices.kind for name, pool in cluster.pools.items()}
    return {name: ACCELERATORS.get(kind, "") if mixed else "" for name, kind in kinds.items()}


def holds_tokens_head(role: str) -> bool:
    """Return whether a role's model ends in a distribution over tokens rather than in one number."""
    return role in ("actor", "reference", "generator")


def taught_judges(config: Config) -> tuple[str, ...]:
    """Return which of reward and cost the algorithm teaches instead of asking them; none where it is unknown."""
    try:
        return load_dataflow(config.algorithm.name).taught
    except UserError:  # said by the checks of the cast
        return ()


def roles_with_models(config: Config) -> tuple[str, ...]:
    """Return the roles that hold weights: a reward function holds none."""
    taught = taught_judges(config)
    judges = [role for role in ("reward", "cost") if vars(config)[role].kind == "model" or role in taught]
    generators = ("generator",) if generating_role(config) == "generator" else ()
    return ("actor", *generators, "reference", *CRITICS, *judges)


def generating_role(config: Config) -> str:
    """Return the role whose pool generates: a generator where one is placed, else the actor itself."""
    placed = {role for pool in config.cluster.pools.values() for role in pool.roles}
    return "generator" if "generator" in placed else "actor"


def parameter_count(role: str, model: DecoderConfig) -> int:
    """Count a role's weights; a critic or reward model has one vector of width D in place of the token head."""
    if holds_tokens_head(role):
        return model.parameter_count
    return dataclasses.replace(model, tied_embeddings=True).parameter_count + model.width


def adapters_of(lora: LoraConfig) -> Adapters | None:
    """Return what is trained beside the weights; None where they are trained themselves."""
    if lora.rank == 0:
        return None
    return Adapters(lora.rank, lora.alpha, lora.targets, lora.base_dtype)


def role_adapters(config: Config, role: str) -> Adapters | None:
    """Return the adapters of a role; only models that are trained can have some."""
    own = {"actor": config.actor.lora, **dict.fromkeys(CRITICS, config.critic.lora)}
    return adapters_of(own[role]) if role in own else None


def role_bytes(
    role: str,
    model: DecoderConfig,
    mesh: MeshSizes,
    rollout_dtype: str,
    adapters: Adapters | None = None,
    taught: Collection[str] = (),
) -> RoleBytes:
    """Return the bytes that a role with this model keeps on each device of a mesh; judges learn that are `taught`.

    Counted in the shapes and the table of layouts themselves: what is not cut over an axis is whole on all of it.
    """
    kind = LanguageModel if holds_tokens_head(role) else ScalarModel
    described, plain = describe(model, kind, adapters), describe(model, kind)
    trained = _numbers(described, described.trained, 0, mesh)
    frozen = _numbers(described, described.frozen, 0, mesh)
    frozen_bytes = frozen * _DTYPE_BYTES[adapters.base_dtype] if adapters is not None else 0
    rollout = _numbers(plain, plain.trained, 1, mesh) * _DTYPE_BYTES[rollout_dtype]
    if role == "generator":
        return RoleBytes(weights=0, training=0, rollout=rollout)
    return RoleBytes(
        weights=trained * _FLOAT32_BYTES + frozen_bytes,
        training=3 * trained * _FLOAT32_BYTES if role in ("actor", *CRITICS, *taught) else 0,
        rollout=rollout if role == "actor" else 0,
    )


def _numbers(model: Model, part: Callable[[Params], Params], column: int, mesh: MeshSizes) -> int:
    """Count the numbers of a part of a model on one device under a column of the table of layouts."""
    sizes = vars(mesh)
    axes = {name: columns[column] for name, columns in TABLE.items()}
    axes["kv_heads"] = fitting_prefix(model.config.kv_heads, axes["kv_heads"], sizes)
    ways = {None: 1} | {name: math.prod(sizes[axis] for axis in cut) for name, cut in axes.items()}
    names = jax.tree.leaves(part(model.names), is_leaf=lambda leaf: isinstance(leaf, tuple))
    return sum(
        math.prod(size // ways[name] for size, name in zip(leaf.shape, named, strict=True))
        for leaf, named in zip(jax.tree.leaves(part(model.shapes)), names, strict=True)
    )


def describe_pool(
    name: str,
    plan: PoolPlan,
    models: Mapping[str, DecoderConfig],
    rollout_dtype: str,
    adapters: Mapping[str, Adapters | None],
    taught: Collection[str] = (),
) -> Iterator[str]:
    """Yield lines for people: pool → hosts → devices → layouts → roles → bytes per device."""
    mesh = plan.mesh
    yield (
        f"pool {name}: {_counted(plan.hosts, 'host')} × {_counted(plan.devices_per_host, 'device')}"
        f" → {', '.join(plan.roles)}"
    )
    yield (
        f"  training    data {mesh.data} × fsdp {mesh.fsdp}{_axis('expert', mesh.expert)}{_axis('pipe', mesh.stages)}"
        f" × tensor {mesh.training_tensor} → rows over {_counted(mesh.training_replicas, 'replica')}"
    )
    generating = "generator" if "generator" in models else "actor"
    if generating in plan.roles:
        yield (
            f"  generation  data {mesh.data} × fsdp {mesh.fsdp}{_axis('expert', mesh.expert)}"
            f"{_axis('micro_pipe', mesh.micro_pipe)} × micro {mesh.micro}{_axis('pipe', mesh.pipe)}"
            f" × tensor {mesh.tensor}"
            f" → rows over {_counted(mesh.generation_replicas, 'replica')}"
        )
    for role in plan.roles:
        if role not in models:
            yield f"  {role:<10}  no weights"
            continue
        held = role_bytes(role, models[role], mesh, rollout_dtype, adapters.get(role), taught)
        parts = [f"{readable_bytes(held.weights)} weights"] if held.weights > 0 else []
        parts += [f"{readable_bytes(held.training)} gradients and optimizer"] if held.training > 0 else []
        parts += [f"{readable_bytes(held.rollout)} rollout weights"] if role == generating else []
        count = parameter_count(role, models[role])
        waits = "; waits in host memory" if role in plan.offload else ""
        yield f"  {role:<10}  {count:,} parameters → per device {', '.join(parts)}{waits}"


def _axis(name: str, size: int) -> str:
    """Name an axis that few meshes have."""
    return f" × {name} {size}" if size > 1 else ""


def dealt_cores(hosts: Mapping[str, int], available: Sequence[int]) -> dict[str, list[tuple[int, ...]]]:
    """Deal CPU cores to the processes of pools, as even as it goes: pool name -> cores of each of its hosts.

    Simulated devices of different pools then run at the same time without taking each other's cores, as real
    ones do. With more processes than cores they share. No cores, no choice: where none are available, and for a
    single process, which may use all.
    """
    names = [name for name, count in hosts.items() for _ in range(count)]
    count = len(names)
    dealt: dict[str, list[tuple[int, ...]]] = {name: [] for name in hosts}
    for index, name in enumerate(names):
        if count == 1 or not available:
            cores: tuple[int, ...] = ()
        elif count <= len(available):
            cores = tuple(available[index * len(available) // count : (index + 1) * len(available) // count])
        else:
            cores = (available[index % len(available)],)
        dealt[name].append(cores)
    return dealt


def readable_bytes(size: int) -> str:
    """Return bytes in decimal megabytes below one gigabyte, in gigabytes from there on."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
