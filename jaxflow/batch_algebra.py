"""What a config amounts to: prompts → sequences → mini-batches → micro-batches → updates, on which pools.

Pure arithmetic on a config that `checks.check` accepts. Knows no device, file or tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxflow.config import ActorConfig, Config, CriticConfig, RewardConfig
from jaxflow.dataflow import PAIRS, PROMPTS, load_dataflow
from jaxflow.engine.batching import plan_micro_batches
from jaxflow.engine.pipeline import bubble
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.placement import (
    MeshSizes,
    PoolPlan,
    describe_pool,
    generating_role,
    plan_pools,
    role_adapters,
    roles_with_models,
    taught_judges,
)


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """How the sequences of one step become optimizer updates of one model."""

    minibatch_sequences: int  # per update, over all devices
    minibatches: int  # per pass over the step's sequences
    updates_per_step: int  # mini-batches × passes
    total_updates: int  # of the run: where the learning-rate schedule ends
    microbatches_if_longest: int  # per mini-batch, were every sequence the longest
    # Share of the time that a stage idles, were every sequence the longest; 0: one stage
    pipeline_bubble: float


@dataclasses.dataclass(frozen=True)
class Derived:
    """The sizes that follow from a config, computed once."""

    pools: Mapping[str, PoolPlan]  # by name
    actor_model: DecoderConfig  # vocabulary filled in
    critic_model: DecoderConfig
    reward_model: DecoderConfig
    cost_model: DecoderConfig
    prompts_per_step: int
    sequences_per_step: int  # prompts × samples per prompt
    longest_sequence_tokens: int  # prompt + response
    generation_rows: int  # of each generation replica, per step; 0 where no step generates
    generation_slots: int  # rows of each generation replica that run at once: others wait for one to end
    actor: UpdatePlan | None  # None where no pool has an actor
    critic: UpdatePlan | None  # None where no pool has a critic: the algorithm needs none
    taught: Mapping[str, UpdatePlan]  # of the judges that the algorithm teaches, by role


def derive(config: Config, vocabulary_size: int) -> Derived:
    """Compute the batch algebra of a config that `check` accepts; the tokenizer gives `vocabulary_size`."""
    pools = plan_pools(config)
    meshes: dict[str, MeshSizes] = {role: plan.mesh for plan in pools.values() for role in plan.roles}
    sequences, parts = sequences_per_step(config), config.rollout.parts
    generates = load_dataflow(config.algorithm.name).batches == PROMPTS
    total = config.run.total_steps
    learning = max(0, total - config.critic.warmup_steps)  # steps in which the policy does
    rows = sequences // meshes[generating_role(config)].generation_replicas if generates else 0
    return Derived(
        pools=pools,
        actor_model=with_vocabulary(config.actor.model, vocabulary_size),
        critic_model=with_vocabulary(config.critic_model, vocabulary_size),
        reward_model=with_vocabulary(config.reward_model, vocabulary_size),
        cost_model=with_vocabulary(config.cost_model, vocabulary_size),
        prompts_per_step=config.data.prompts_per_step,
        sequences_per_step=sequences,
        longest_sequence_tokens=longest_sequence_tokens(config),
        generation_rows=rows,
        generation_slots=min(rows // parts, config.rollout.sequences_per_device),
        actor=_update_plan(config, config.actor, meshes["actor"], learning) if "actor" in meshes else None,
        critic=_update_plan(config, config.critic, meshes["critic"], total) if "critic" in meshes else None,
        taught={
            role: _update_plan(config, vars(config)[role], meshes[role], total)
            for role in taught_judges(config)
            if role in meshes
        },
    )


def describe(config: Config, derived: Derived) -> str:
    """Return the resolved placement, batch algebra and model sizes as lines for people."""
    prompts, sequences = derived.prompts_per_step, derived.sequences_per_step
    cluster, rollout = config.cluster, config.rollout
    decoders = {
        "actor": derived.actor_model,
        "generator": derived.actor_model,
        "reference": derived.actor_model,
        "critic": derived.critic_model,
        "cost_critic": derived.critic_model,
        "reward": derived.reward_model,
        "cost": derived.cost_model,
    }
    models = {role: decoders[role] for role in roles_with_models(config)}
    adapters = {role: role_adapters(config, role) for role in models}
    devices = sum(plan.mesh.devices for plan in derived.pools.values())
    lines = [f"devices     {devices} ({cluster.platform}), launcher {cluster.launcher}"]
    for name, plan in derived.pools.items():
        lines += describe_pool(name, plan, models, rollout.dtype, adapters, tuple(derived.taught))
    kind, total = load_dataflow(config.algorithm.name).batches, config.run.total_steps
    if kind == PROMPTS:
        in_parts = f" in {rollout.parts} parts" if rollout.parts > 1 else ""
        what = f"{prompts} prompts × {rollout.samples_per_prompt} samples = {sequences} sequences{in_parts}"
    else:
        what = f"{sequences} {kind.replace('_', ' ')}"
    lines += [
        f"step        {what}",
        f"  tokens      at most {config.data.max_prompt_tokens} prompt + {rollout.max_response_tokens}"
        f" response = {derived.longest_sequence_tokens} per sequence"
        f" (vocabulary {derived.actor_model.vocabulary_size})",
    ]
    if kind == PROMPTS:
        lines.append(
            f"  generate    {derived.generation_rows} sequences per replica, {derived.generation_slots} at once"
        )
    plans = {"actor": derived.actor, "critic": derived.critic, **derived.taught}
    updates = []
    for role, plan in plans.items():
        if plan is not None:
            rows = "sequences" if sequences_per_row(config) == 1 else "pairs"
            lines += _describe_updates(role, sequences, plan, vars(config)[role], rows)
            updates.append(f"{plan.total_updates} {role} updates")
    lines.append(f"run         {total} steps → {', '.join(updates)}")
    return "\n".join(lines)


def _describe_updates(
    role: str, sequences: int, plan: UpdatePlan, config: ActorConfig | CriticConfig | RewardConfig, rows: str
) -> tuple[str, str]:
    idle = f"; pipeline stages idle {plan.pipeline_bubble:.1%}" if plan.pipeline_bubble > 0.0 else ""
    return (
        f"  {role:<10}  {sequences} {rows} → {plan.minibatches} mini-batches of {plan.minibatch_sequences}"
        f" × {config.update_epochs} epochs = {plan.updates_per_step} updates",
        f"              micro-batches of at most {config.microbatch_tokens_per_device} padded tokens per"
        f" device: {plan.microbatches_if_longest} per mini-batch if every sequence is the longest{idle}",
    )


def sequences_per_step(config: Config) -> int:
    """Return prompts per step × samples per prompt, over all devices."""
    return config.data.prompts_per_step * config.rollout.samples_per_prompt


def sequences_per_row(config: Config) -> int:
    """Return the sequences that stand in one row of a step's batch: two where it is a pair."""
    return 2 if load_dataflow(config.algorithm.name).batches in PAIRS else 1


def longest_sequence_tokens(config: Config) -> int:
    """Return the tokens of the longest prompt with the longest response."""
    return config.data.max_prompt_tokens + config.rollout.max_response_tokens


def with_vocabulary(model: DecoderConfig, vocabulary_size: int) -> DecoderConfig:
    """Fill in the tokenizer's vocabulary where the config left it open."""
    chosen = vocabulary_size if model.vocabulary_size == 0 else model.vocabulary_size
    return dataclasses.replace(model, vocabulary_size=chosen)


def _update_plan(
    config: Config, role: ActorConfig | CriticConfig | RewardConfig, mesh: MeshSizes, steps: int
) -> UpdatePlan:
    updates = sequences_per_step(config) // role.minibatch_sequences * role.update_epochs
    longest = [longest_sequence_tokens(config)] * role.minibatch_sequences
    budget = role.microbatch_tokens_per_device // sequences_per_row(config)
    passes = plan_micro_batches(longest, budget, mesh.training_replicas)
    return UpdatePlan(
        minibatch_sequences=role.minibatch_sequences,
        minibatches=sequences_per_step(config) // role.minibatch_sequences,
        updates_per_step=updates,
        total_updates=updates * steps,
        microbatches_if_longest=len(passes),
        pipeline_bubble=bubble(passes, mesh.stages),
    )
