"""What a config amounts to: prompts → sequences → mini-batches → micro-batches → updates, on which mesh.

Pure arithmetic on a config that `config_checks.check` accepts. Knows no device, file or tokenizer.
"""

from __future__ import annotations

import dataclasses
import math

from jaxflow.config import ActorConfig, Config, CriticConfig
from jaxflow.engine.batching import plan_micro_batches
from jaxflow.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class MeshSizes:
    """The axes of the pool's mesh; generation shards weights over `tensor` and rows over the others."""

    data: int
    fsdp: int
    tensor: int  # t_g
    micro: int  # t / t_g

    @property
    def training_replicas(self) -> int:
        """Count the groups of devices that the rows of training and scoring are split over."""
        return self.data * self.fsdp

    @property
    def generation_replicas(self) -> int:
        """Count the groups of devices that the rows of generation are split over."""
        return self.data * self.fsdp * self.micro


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """How the sequences of one step become optimizer updates of one model."""

    minibatch_sequences: int  # per update, over all devices
    minibatches: int  # per pass over the step's sequences
    updates_per_step: int  # mini-batches × passes
    total_updates: int  # of the run: where the learning-rate schedule ends
    microbatches_if_longest: int  # per mini-batch, were every sequence the longest


@dataclasses.dataclass(frozen=True)
class Derived:
    """The sizes that follow from a config, computed once."""

    mesh: MeshSizes
    actor_model: DecoderConfig  # vocabulary filled in
    critic_model: DecoderConfig
    prompts_per_step: int
    sequences_per_step: int  # prompts × samples per prompt
    longest_sequence_tokens: int  # prompt + response
    generation_rows: int  # of each generation replica, per step
    generation_rounds: int  # of at most rollout.sequences_per_device rows each
    actor: UpdatePlan
    critic: UpdatePlan


def derive(config: Config, vocabulary_size: int) -> Derived:
    """Compute the batch algebra of a config that `check` accepts; the tokenizer gives `vocabulary_size`."""
    mesh = mesh_sizes(config)
    sequences = sequences_per_step(config)
    rows = sequences // mesh.generation_replicas
    return Derived(
        mesh=mesh,
        actor_model=with_vocabulary(config.actor.model, vocabulary_size),
        critic_model=with_vocabulary(config.critic_model, vocabulary_size),
        prompts_per_step=config.data.prompts_per_step,
        sequences_per_step=sequences,
        longest_sequence_tokens=longest_sequence_tokens(config),
        generation_rows=rows,
        generation_rounds=math.ceil(rows / config.rollout.sequences_per_device),
        actor=_update_plan(config, config.actor),
        critic=_update_plan(config, config.critic),
    )


def describe(config: Config, derived: Derived) -> str:
    """Return the resolved batch algebra, mesh and model sizes as lines for people."""
    mesh, prompts, sequences = derived.mesh, derived.prompts_per_step, derived.sequences_per_step
    cluster, rollout = config.cluster, config.rollout
    policy, value = derived.actor_model.parameter_count, _value_parameter_count(derived.critic_model)
    lines = [
        f"devices     {cluster.devices} ({cluster.platform}), launcher {cluster.launcher}",
        f"  training    data {mesh.data} × fsdp {mesh.fsdp} × tensor {mesh.tensor * mesh.micro}"
        f" → rows over {mesh.training_replicas} replicas",
        f"  generation  data {mesh.data} × fsdp {mesh.fsdp} × micro {mesh.micro} × tensor {mesh.tensor}"
        f" → rows over {mesh.generation_replicas} replicas",
        f"parameters  actor {policy:,} · reference {policy:,} · critic {value:,}"
        f" (vocabulary {derived.actor_model.vocabulary_size})",
        f"step        {prompts} prompts × {rollout.samples_per_prompt} samples = {sequences} sequences",
        f"  tokens      at most {config.data.max_prompt_tokens} prompt + {rollout.max_response_tokens}"
        f" response = {derived.longest_sequence_tokens} per sequence",
        f"  generate    {derived.generation_rows} sequences per replica in {derived.generation_rounds}"
        f" round(s) of at most {rollout.sequences_per_device}",
        *_describe_updates("actor", sequences, derived.actor, config.actor),
        *_describe_updates("critic", sequences, derived.critic, config.critic),
        f"run         {config.run.total_steps} steps → {derived.actor.total_updates} actor updates,"
        f" {derived.critic.total_updates} critic updates",
    ]
    return "\n".join(lines)


def _describe_updates(
    role: str, sequences: int, plan: UpdatePlan, config: ActorConfig | CriticConfig
) -> tuple[str, str]:
    return (
        f"  {role:<10}  {sequences} sequences → {plan.minibatches} mini-batches of {plan.minibatch_sequences}"
        f" × {config.update_epochs} epochs = {plan.updates_per_step} updates",
        f"              micro-batches of at most {config.microbatch_tokens_per_device} padded tokens per"
        f" device: {plan.microbatches_if_longest} per mini-batch if every sequence is the longest",
    )


def mesh_sizes(config: Config) -> MeshSizes:
    """Return the mesh with the training tensor axis split into `tensor` × `micro`."""
    mesh = config.cluster.mesh
    return MeshSizes(mesh.data, mesh.fsdp, mesh.generation_tensor, mesh.tensor // mesh.generation_tensor)


def sequences_per_step(config: Config) -> int:
    """Return prompts per step × samples per prompt, over all devices."""
    return config.data.prompts_per_step * config.rollout.samples_per_prompt


def longest_sequence_tokens(config: Config) -> int:
    """Return the tokens of the longest prompt with the longest response."""
    return config.data.max_prompt_tokens + config.rollout.max_response_tokens


def with_vocabulary(model: DecoderConfig, vocabulary_size: int) -> DecoderConfig:
    """Fill in the tokenizer's vocabulary where the config left it open."""
    chosen = vocabulary_size if model.vocabulary_size == 0 else model.vocabulary_size
    return dataclasses.replace(model, vocabulary_size=chosen)


def _value_parameter_count(model: DecoderConfig) -> int:
    """Count a critic's weights: one vector of the model's width in place of the token head."""
    return dataclasses.replace(model, tied_embeddings=True).parameter_count + model.width


def _update_plan(config: Config, role: ActorConfig | CriticConfig) -> UpdatePlan:
    replicas = mesh_sizes(config).training_replicas
    updates = sequences_per_step(config) // role.minibatch_sequences * role.update_epochs
    longest = [longest_sequence_tokens(config)] * role.minibatch_sequences
    return UpdatePlan(
        minibatch_sequences=role.minibatch_sequences,
        minibatches=sequences_per_step(config) // role.minibatch_sequences,
        updates_per_step=updates,
        total_updates=updates * config.run.total_steps,
        microbatches_if_longest=len(plan_micro_batches(longest, role.microbatch_tokens_per_device, replicas)),
    )
