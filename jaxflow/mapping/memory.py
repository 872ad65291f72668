"""Bytes of one role on each device in one layout, at rest and at work. Knows no placement and no time.

These are formulas; `--plan --compile` sets the compiler's own figures beside them.
"""

from __future__ import annotations

import dataclasses

from jaxflow.engine.layout_rules import Parallelism
from jaxflow.engine.schedule import rounded
from jaxflow.mapping import cost
from jaxflow.mapping.load import RoleLoad
from jaxflow.mapping.stages import Setting, cut, prefills, replica_rows, slots_of

_LOGIT_CHUNK_BYTES = 3 * (
    64 << 20
)  # engine/score.py: 64 MiB of logits at a time, their probabilities, a gradient
_BUCKET_BYTES = 2 * (64 << 20)  # engine/transition.py: what moves at once at least, and where it lands


@dataclasses.dataclass(frozen=True)
class AtRest:
    """What a role keeps on each device while others work."""

    weights: float
    optimizer: float
    gradients: float
    references: float = 0.0  # frozen weights that its own are compared with

    @property
    def total(self) -> float:
        """Return the sum."""
        return self.weights + self.optimizer + self.gradients + self.references


@dataclasses.dataclass(frozen=True)
class AtWork:
    """What a call of a role needs on each device beyond what is at rest."""

    gradients: float = 0.0
    optimizer: float = 0.0  # state made anew, beside the old
    activations: float = 0.0
    rollout_weights: float = 0.0
    cache: float = 0.0

    @property
    def total(self) -> float:
        """Return the sum."""
        return self.gradients + self.optimizer + self.activations + self.rollout_weights + self.cache


def at_rest(load: RoleLoad, layout: Parallelism, setting: Setting) -> AtRest:
    """Return weights, optimizer state and gradients: (w + o + g) N / (t p f), o over d too where it is shared out."""
    engine, ways = setting.engine, layout.tensor * layout.pipe * layout.fsdp
    numbers = load.model.share(ways, layout.expert)
    if load.borrows:
        return AtRest(0.0, 0.0, 0.0)
    if not load.trained:
        return AtRest(engine.frozen_bytes * numbers, 0.0, 0.0)
    learning = load.learning_share(ways, layout.expert)
    sharing = ways * layout.data if engine.optimizer_over_data else ways
    optimized = load.learning_share(sharing, layout.expert)
    gradients = engine.gradient_bytes * learning if engine.gradients_at_rest else 0.0
    weights = engine.weight_bytes * learning
    if load.adapters > 0:
        weights += load.base_bytes * numbers
    references = engine.weight_bytes * load.references * numbers
    return AtRest(weights, engine.optimizer_bytes * optimized, gradients, references)


def parked(load: RoleLoad, rest: AtRest) -> float:
    """Return what of a role's rest can wait in host memory: a frozen model's weights, else the optimizer's state."""
    return rest.optimizer if load.trained else rest.weights


def block_bytes(load: RoleLoad, tokens: float, tensor: int, expert: int, setting: Setting) -> float:
    """Return the activations of one layer: 8 of D, and 3 F + 2 (N + 2 K) H cut over t, for each token.

    A mixture has a row of 3 D and 3 F for each expert that a token is sent to, of all tokens that its `expert` ranks
    gather (engine/experts.py).
    """
    decoder = load.model.decoder
    rows = decoder.experts_per_token * expert if decoder.experts > 0 else 1
    moved = 3 * rows * decoder.width if decoder.experts > 0 else 0
    heads = 2 * (decoder.padded_heads + 2 * decoder.kv_heads) * decoder.head_width
    cut_numbers = 3 * rows * decoder.mlp_width + heads
    return setting.engine.compute_bytes * tokens * (8 * decoder.width + moved + cut_numbers / tensor)


def _gathered(load: RoleLoad, layout: Parallelism, setting: Setting, bytes_each: int) -> float:
    """Return a stage's weights made whole over the fsdp axis; without stages two layers', one of them on its way."""
    if layout.fsdp == 1:
        return 0.0
    one = load.model.layer_share(layout.tensor, layout.expert)
    if layout.pipe > 1:
        return bytes_each * load.model.layers / layout.pipe * one
    return 2.0 * setting.engine.compute_bytes * one


def scoring(load: RoleLoad, layout: Parallelism, setting: Setting) -> AtWork:
    """Return what one scoring pass holds."""
    workload = setting.workload
    rows = cut(workload.part_sequences, layout, workload.length, workload.score_tokens).rows
    block = block_bytes(load, workload.length * rows, layout.tensor, layout.expert, setting)
    gathered = _gathered(load, layout, setting, setting.engine.weight_bytes)
    return AtWork(activations=block + gathered + _LOGIT_CHUNK_BYTES)


def scoring_copy(load: RoleLoad, layout: Parallelism, setting: Setting) -> float:
    """Return a trained role's weights as they score in the generation layout, beside those at rest."""
    ways = layout.generation_tensor * layout.generation_pipe
    return setting.engine.weight_bytes * load.model.share(ways, layout.expert)


def gradient_bytes(load: RoleLoad, layout: Parallelism, setting: Setting) -> float:
    """Return one set of gradients."""
    ways = layout.tensor * layout.pipe * layout.fsdp
    return setting.engine.gradient_bytes * load.learning_share(ways, layout.expert)


def training(load: RoleLoad, layout: Parallelism, setting: Setting) -> AtWork:
    """Return what an update holds: a micro-batch's pass, or the optimizer's, whichever is more.

    A pass has gradients, each layer's saved input, one layer live with its gradients; a stage of a pipeline keeps the
    inputs of min(p, M) micro-batches. The optimizer has the gradients and what it makes anew.
    """
    workload, engine = setting.workload, setting.engine
    micro = cut(load.minibatch_sequences, layout, workload.length, load.microbatch_tokens)
    tokens = micro.rows * workload.length
    block = block_bytes(load, tokens, layout.tensor, layout.expert, setting)
    layers = load.model.layers / layout.pipe * min(layout.pipe, micro.microbatches)
    saved = (
        engine.compute_bytes * tokens * load.model.decoder.width * layers
        if workload.remat
        else block * layers
    )
    one, resting = gradient_bytes(load, layout, setting), 1 if engine.gradients_at_rest else 0
    # A pipeline's gradients stay with each replica until its ticks are over.
    gathered = _gathered(load, layout, setting, engine.weight_bytes + engine.gradient_bytes)
    a_pass = AtWork(
        gradients=(engine.gradient_copies - resting) * one,
        activations=saved + 2.0 * block + gathered + _LOGIT_CHUNK_BYTES,
    )
    made_anew = engine.update_bytes * one / engine.gradient_bytes
    optimizing = AtWork(gradients=(1 - resting) * one, optimizer=made_anew)
    return max(a_pass, optimizing, key=lambda work: work.total)


def rollout_weights(load: RoleLoad, layout: Parallelism, setting: Setting) -> float:
    """Return the copy that generates: N / (t_g p_g) in the rollout's dtype, of experts 1 / expert of that."""
    ways = layout.generation_tensor * layout.generation_pipe
    return setting.engine.rollout_bytes * load.model.share(ways, layout.expert)


def row_bytes(load: RoleLoad, layout: Parallelism, setting: Setting) -> float:
    """Return what one running row costs in generation: its cache, at its longest, and its logits."""
    workload = setting.workload
    ways = layout.generation_tensor * layout.generation_pipe
    positions = rounded(workload.length) if setting.engine.slots else workload.length
    vocabulary = load.model.head_products / load.model.decoder.width
    return positions * _position_bytes(load, layout, setting) + 12.0 * vocabulary / ways


def _position_bytes(load: RoleLoad, layout: Parallelism, setting: Setting) -> float:
    number_bytes = setting.engine.rollout_bytes
    return cost.cache_bytes(load.model, number_bytes, layout.generation_tensor, layout.generation_pipe)


def prefill_bytes(load: RoleLoad, layout: Parallelism, setting: Setting) -> float:
    """Return what the prompts of one prefill hold: what is kept of them, and one layer's activations.

    An engine without slots fills its cache in pieces, and has next to none.
    """
    if not setting.engine.slots:
        return 0.0
    workload = setting.workload
    _, prompts = prefills(replica_rows(layout, setting), workload)
    tokens = slots_of(prompts, layout, setting) * workload.prompt_tokens
    group = tokens / layout.generation_pipe
    block = block_bytes(load, group, layout.generation_tensor, layout.expert, setting)
    return tokens * _position_bytes(load, layout, setting) + block


def generation(load: RoleLoad, layout: Parallelism, setting: Setting, rows: int) -> AtWork:
    """Return what generating `rows` rows at once holds, in as many slots as that takes."""
    rows = slots_of(rows, layout, setting)
    positions = rounded(setting.workload.length) if setting.engine.slots else setting.workload.length
    cached = rows * positions * _position_bytes(load, layout, setting)
    return AtWork(
        rollout_weights=rollout_weights(load, layout, setting),
        cache=cached,
        activations=rows * row_bytes(load, layout, setting) - cached + prefill_bytes(load, layout, setting),
    )


def transition(load: RoleLoad, layout: Parallelism, setting: Setting) -> AtWork:
    """Return what the switch holds at its peak: the whole generation shard, and one bucket on its way.

    A stack of one weight of all layers moves whole: it is the largest bucket.
    """
    decoder = load.model.decoder
    stack = decoder.layers * decoder.width * decoder.mlp_width * max(decoder.experts // layout.expert, 1)
    ways = layout.generation_tensor * layout.generation_pipe
    largest = setting.engine.rollout_bytes * max(stack, load.model.head_products) / ways
    return AtWork(
        rollout_weights=rollout_weights(load, layout, setting), activations=max(largest, _BUCKET_BYTES)
    )
