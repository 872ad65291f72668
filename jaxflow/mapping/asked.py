"""What a config asks of the mapping: loads of its roles, its workload, its devices, and the engine that runs it.

Knows the config and the shapes of models. Searches nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from jaxflow.batch_algebra import longest_sequence_tokens, sequences_per_step, with_vocabulary
from jaxflow.config import Config, MeshConfig
from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping.devices import DeviceGroup, DeviceProfile, device_profile
from jaxflow.mapping.engine_profile import JAXFLOW, EngineProfile
from jaxflow.mapping.load import RoleLoad, Workload
from jaxflow.mapping.model_size import model_size
from jaxflow.models.adapters import Adapters
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe
from jaxflow.placement import (
    CRITICS,
    VALIDATING,
    generating_role,
    holds_tokens_head,
    role_adapters,
    roles_with_models,
    taught_judges,
)
from jaxflow.types import UserError

_GREEDY_TOO = "remax"  # the algorithm whose baseline is a second, greedy response
# In this order scripts ask roles of a rollout (dataflow/): a pool makes all parts of one call before the next one.
SCORING_ORDER = ("reward", "cost", "critic", "cost_critic", "reference", "actor")
_NUMBER_BYTES = {"float32": 4, "bfloat16": 2}


def decoders(config: Config, vocabulary_size: int) -> Mapping[str, DecoderConfig]:
    """Return the decoder of each role that can hold one, vocabularies filled in."""
    shapes = {
        "actor": config.actor.model,
        "generator": config.actor.model,
        "reference": config.actor.model,
        **dict.fromkeys(CRITICS, config.critic_model),
        "reward": config.reward_model,
        "cost": config.cost_model,
    }
    return {role: with_vocabulary(shape, vocabulary_size) for role, shape in shapes.items()}


def loads_of(config: Config, vocabulary_size: int, roles: Sequence[str]) -> tuple[RoleLoad, ...]:
    """Return what a step asks of each of these roles that holds a model, in their order."""
    shapes, holding = decoders(config, vocabulary_size), roles_with_models(config)
    return tuple(_load(config, role, shapes[role]) for role in roles if role in holding)


def _load(config: Config, role: str, decoder: DecoderConfig) -> RoleLoad:
    kl = config.algorithm.kl
    responses = 2 if config.algorithm.name == _GREEDY_TOO else 1
    trained = {"actor": config.actor, **dict.fromkeys(CRITICS, config.critic)}
    settings = trained.get(role)
    minibatch = settings.minibatch_sequences if settings is not None else 0
    updates, adapters = 0, role_adapters(config, role)
    if settings is not None:
        updates = max(1, sequences_per_step(config) // minibatch) * settings.update_epochs
    return RoleLoad(
        role=role,
        model=model_size(decoder, holds_tokens_head(role)),
        trained=settings is not None,
        generations=responses if role == generating_role(config) else 0,
        scores=_scores(config, role, responses),
        updates=updates,
        minibatch_sequences=minibatch,
        microbatch_tokens=settings.microbatch_tokens_per_device if settings is not None else 0,
        adapters=_adapter_parameters(role, decoder, adapters) if adapters is not None else 0,
        base_bytes=_NUMBER_BYTES[adapters.base_dtype] if adapters is not None else JAXFLOW.weight_bytes,
        stays=role in taught_judges(config)
        or adapters is not None
        or (role == "actor" and kl.exact_in_rewards),
        validates=role in VALIDATING,
        score_references=int(role == "actor" and kl.exact_in_rewards),
        learn_references=int(role == "actor" and kl.exact_in_loss),
        counts_choices=settings is not None and settings.router_aux_loss_coefficient > 0,
        turn=SCORING_ORDER.index(role) if role in SCORING_ORDER else len(SCORING_ORDER),
        borrows=role == "generator",
    )


def _scores(config: Config, role: str, responses: int) -> int:
    """Return how often a role passes over the step's sequences without learning."""
    if role == "generator" or (role == "actor" and config.algorithm.off_policy.bypass):
        return 0
    return responses if role in VALIDATING else 1


def _adapter_parameters(role: str, decoder: DecoderConfig, adapters: Adapters) -> int:
    described = describe(decoder, LanguageModel if holds_tokens_head(role) else ScalarModel, adapters)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(described.trained(described.shapes)))


def workload_of(config: Config) -> Workload:
    """Return the sequences of a step, each as long as it may be."""
    return Workload(
        sequences=sequences_per_step(config),
        prompt_tokens=config.data.max_prompt_tokens,
        response_tokens=longest_sequence_tokens(config) - config.data.max_prompt_tokens,
        score_tokens=config.rollout.score_microbatch_tokens_per_device,
        remat=config.actor.model.remat,
        most_rows=config.rollout.sequences_per_device,
        samples_per_prompt=config.rollout.samples_per_prompt,
        parts=config.rollout.parts,
    )


def engine_of(config: Config) -> EngineProfile:
    """Return this project's engine as the config has it compute."""
    return dataclasses.replace(
        JAXFLOW,
        compute_bytes=_NUMBER_BYTES[config.actor.model.compute_dtype],
        rollout_bytes=_NUMBER_BYTES[config.rollout.dtype],
    )


def profile_of(config: Config, kind: str = "") -> DeviceProfile:
    """Return the profile of a kind of devices; of an empty one, the cluster's.

    Raises UserError where the config names none for a platform that has several.
    """
    kind = kind or config.cluster.devices.kind
    if kind:
        return device_profile(kind)
    if config.cluster.platform == "cpu":
        return device_profile("cpu")
    raise UserError(
        "cluster.devices.kind is empty: a plan must know what the devices are; name one, e.g."
        " --config.cluster.devices.kind=h100"
    )


def groups_of(config: Config) -> tuple[DeviceGroup, ...]:
    """Return the devices that a mapping is searched for, kind by kind: those that `cluster.devices` and
    `cluster.more_devices` name, or as many as the pools have."""
    cluster = config.cluster
    if cluster.mapping == "auto":
        return tuple(
            _group(config, asked.kind, asked.hosts, asked.devices_per_host)
            for asked in (cluster.devices, *cluster.more_devices.values())
        )
    groups = []
    for kind in dict.fromkeys(pool.device for pool in cluster.pools.values()):
        pools = [pool for pool in cluster.pools.values() if pool.device == kind]
        inside = max(pool.devices_per_host for pool in pools)
        devices = sum(pool.hosts * pool.devices_per_host for pool in pools)
        groups.append(_group(config, kind, math.ceil(devices / inside), inside))
    return tuple(groups)


def _group(config: Config, kind: str, hosts: int, devices_per_host: int) -> DeviceGroup:
    """Return devices of a kind, all at work at once."""
    profile = profile_of(config, kind).among(hosts * devices_per_host)
    return DeviceGroup(profile, hosts, devices_per_host)


def described(groups: Sequence[DeviceGroup]) -> str:
    """Name the devices for people."""
    return " and ".join(
        f"{group.hosts} hosts × {group.devices_per_host} devices ({group.profile.kind})" for group in groups
    )


def parallelism(mesh: MeshConfig) -> Parallelism:
    """Return a pool's mesh as a layout."""
    return Parallelism(
        data=mesh.data,
        fsdp=mesh.fsdp,
        tensor=mesh.tensor,
        generation_tensor=mesh.generation_tensor,
        pipe=mesh.pipe,
        generation_pipe=mesh.generation_pipe,
        expert=mesh.expert,
    )
