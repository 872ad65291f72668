"""Which role lives in which pool, in which layouts, in how many bytes. Arithmetic on a config.

Knows no device and no process, and no algorithm: which roles there must be is checked in `checks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from jaxflow.config import Config, MeshConfig
from jaxflow.models.decoder_config import DecoderConfig

_FLOAT32_BYTES = 4
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class MeshSizes:
    """The axes of a pool's mesh; generation shards weights over `tensor` and rows over the others."""

    data: int
    fsdp: int
    tensor: int  # t_g
    micro: int  # t / t_g

    @property
    def devices(self) -> int:
        """Count the devices of the mesh."""
        return self.data * self.fsdp * self.tensor * self.micro

    @property
    def training_tensor(self) -> int:
        """Return t, the ways that training and scoring split each weight's tensor axis."""
        return self.tensor * self.micro

    @property
    def training_replicas(self) -> int:
        """Count the groups of devices that the rows of training and scoring are split over."""
        return self.data * self.fsdp

    @property
    def generation_replicas(self) -> int:
        """Count the groups of devices that the rows of generation are split over."""
        return self.data * self.fsdp * self.micro


@dataclasses.dataclass(frozen=True)
class PoolPlan:
    """One pool: the roles that take turns on its devices, and how those are arranged."""

    roles: tuple[str, ...]
    hosts: int  # worker processes; process p owns the p-th run of devices in mesh order
    devices_per_host: int
    mesh: MeshSizes


@dataclasses.dataclass(frozen=True)
class RoleBytes:
    """What one role keeps on each device of its pool, in bytes; activations and caches come on top."""

    weights: int  # float32 masters, N / (t · fsdp)
    training: int  # float32 gradient and two Adam moments, 3 N / (t · fsdp); 0 for a frozen model
    rollout: int  # copy in the rollout's dtype, N / t_g; 0 for a model that does not generate


def mesh_sizes(mesh: MeshConfig) -> MeshSizes:
    """Return the mesh with the training tensor axis split into `tensor` × `micro`."""
    return MeshSizes(mesh.data, mesh.fsdp, mesh.generation_tensor, mesh.tensor // mesh.generation_tensor)


def plan_pools(config: Config) -> dict[str, PoolPlan]:
    """Return the pools of a config that `check` accepts, by name."""
    return {
        name: PoolPlan(pool.roles, pool.hosts, pool.devices_per_host, mesh_sizes(pool.mesh))
        for name, pool in config.cluster.pools.items()
    }


def holds_tokens_head(role: str) -> bool:
    """Return whether a role's model ends in a distribution over tokens rather than in one number."""
    return role in ("actor", "reference")


def roles_with_models(config: Config) -> tuple[str, ...]:
    """Return the roles that hold weights: a reward function holds none."""
    return ("actor", "reference", "critic", *(("reward",) if config.reward.kind == "model" else ()))


def parameter_count(role: str, model: DecoderConfig) -> int:
    """Count a role's weights; a critic or reward model has one vector of width D in place of the token head."""
    if holds_tokens_head(role):
        return model.parameter_count
    return dataclasses.replace(model, tied_embeddings=True).parameter_count + model.width


def role_bytes(role: str, model: DecoderConfig, mesh: MeshSizes, rollout_dtype: str) -> RoleBytes:
    """Return the bytes that a role with this model keeps on each device of a mesh.

    Vectors (two norms per layer, the last one, a scalar head) are whole on every device.
    """
    vectors = 2 * model.layers + (1 if holds_tokens_head(role) else 2)
    whole = vectors * model.width
    sharded = parameter_count(role, model) - whole
    masters = sharded // (mesh.training_tensor * mesh.fsdp) + whole
    rollout = (sharded // mesh.tensor + whole) * _DTYPE_BYTES[rollout_dtype]
    return RoleBytes(
        weights=masters * _FLOAT32_BYTES,
        training=3 * masters * _FLOAT32_BYTES if role in ("actor", "critic") else 0,
        rollout=rollout if role == "actor" else 0,
    )


def describe_pool(
    name: str, plan: PoolPlan, models: Mapping[str, DecoderConfig], rollout_dtype: str
) -> Iterator[str]:
    """Yield lines for people: pool → hosts → devices → layouts → roles → bytes per device."""
    mesh = plan.mesh
    yield (
        f"pool {name}: {_counted(plan.hosts, 'host')} × {_counted(plan.devices_per_host, 'device')}"
        f" → {', '.join(plan.roles)}"
    )
    yield (
        f"  training    data {mesh.data} × fsdp {mesh.fsdp} × tensor {mesh.training_tensor}"
        f" → rows over {_counted(mesh.training_replicas, 'replica')}"
    )
    if "actor" in plan.roles:
        yield (
            f"  generation  data {mesh.data} × fsdp {mesh.fsdp} × micro {mesh.micro} × tensor {mesh.tensor}"
            f" → rows over {_counted(mesh.generation_replicas, 'replica')}"
        )
    for role in plan.roles:
        if role not in models:
            yield f"  {role:<10}  no weights"
            continue
        held = role_bytes(role, models[role], mesh, rollout_dtype)
        parts = [f"{readable_bytes(held.weights)} weights"]
        parts += [f"{readable_bytes(held.training)} gradients and optimizer"] if held.training > 0 else []
        parts += [f"{readable_bytes(held.rollout)} rollout weights"] if held.rollout > 0 else []
        count = parameter_count(role, models[role])
        yield f"  {role:<10}  {count:,} parameters → per device {', '.join(parts)}"


def readable_bytes(size: int) -> str:
    """Return bytes in decimal megabytes below one gigabyte, in gigabytes from there on."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
