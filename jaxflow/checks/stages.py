"""What in a run that learns from rows with their responses cannot be: supervised stages, pairs, judges that are taught.

Knows keys and what the algorithm is given. Opens no file.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxflow.batch_algebra import longest_sequence_tokens, sequences_per_row
from jaxflow.config import Config
from jaxflow.dataflow import PROMPTS, load_dataflow
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.placement import taught_judges
from jaxflow.types import UserError

# Tokens by which a pair of a built-in task may be longer than the longest answer, and one that a judge is read after.
_MORE_IN_PAIRS = 2


def stage_problems(config: Config) -> Iterator[str]:
    """Say what contradicts itself where no step generates, and which judges are taught and asked at once."""
    try:
        dataflow = load_dataflow(config.algorithm.name)
    except UserError:  # said by the checks of the cast
        return
    if dataflow.batches == PROMPTS:
        return
    name = config.algorithm.name
    rollout, warm_start = config.rollout, config.warm_start
    for key, value, wanted, why in (
        ("rollout.samples_per_prompt", rollout.samples_per_prompt, 1, "no response is sampled to learn from"),
        ("rollout.parts", rollout.parts, 1, "no step generates"),
        (
            "rollout.temperature",
            rollout.temperature,
            1.0,
            "losses are of the policy itself, at temperature 1",
        ),
        ("warm_start.reward_steps", warm_start.reward_steps, 0, "no step asks a reward model"),
    ):
        if value != wanted:
            yield f"{key} = {value}: {why} in {name}; set it to {wanted}"
    if warm_start.steps > 0 and (dataflow.batches == "demonstrations" or "actor" not in dataflow.cast):
        yield f"warm_start.steps = {warm_start.steps}: {name} does not begin from a warm start; set it to 0"
    if any("generator" in pool.roles for pool in config.cluster.pools.values()):
        yield f"cluster.pools have a generator, and {name} generates nothing in its steps: take the role out"
    if config.algorithm.off_policy.bypass:
        yield f"algorithm.off_policy.bypass: {name} has no sampler whose log-probs could stand for the policy's"
    if dataflow.batches != "demonstrations":
        yield from _preference_problems(config)
        yield from _budget_problems(config, dataflow.cast)
    for role in taught_judges(config):
        settings = vars(config)[role]
        if settings.weights and config.actor.weights:
            yield f"{role}.weights and actor.weights: {name} starts from one of them; set the other to ''"


def _preference_problems(config: Config) -> Iterator[str]:
    preference, name = config.algorithm.preference, config.algorithm.name
    if name == "kto" and (preference.loss != "sigmoid" or preference.label_smoothing > 0.0):
        yield "algorithm.preference.loss and label_smoothing are dpo's; kto has a loss of its own: leave them alone"
    if name != "kto" and (preference.desirable_weight, preference.undesirable_weight) != (1.0, 1.0):
        yield (
            "algorithm.preference.desirable_weight and undesirable_weight weigh single responses, which kto alone"
            f" learns from: leave both at 1 in {name}"
        )
    if name == "kto" and min(config.data.prompts_per_step, config.actor.minibatch_sequences) < 2:
        yield (
            "kto measures the policy on responses behind each other's prompts, and a step of one response has no other:"
            " set data.prompts_per_step and actor.minibatch_sequences to at least 2"
        )
    if preference.loss == "ipo" and preference.label_smoothing > 0.0:
        yield "algorithm.preference.label_smoothing is of the loss sigmoid, not of ipo: set it to 0"


def _budget_problems(config: Config, cast: tuple[str, ...]) -> Iterator[str]:
    longest, sequences = longest_sequence_tokens(config) + _MORE_IN_PAIRS, sequences_per_row(config)
    needed = sequences * ladder(longest, LENGTH_UNIT)
    learners = [role for role in ("actor", *taught_judges(config)) if role in cast]
    budgets = [(role, vars(config)[role].microbatch_tokens_per_device) for role in learners]
    budgets = [(f"{role}.microbatch_tokens_per_device", tokens) for role, tokens in budgets]
    if "reference" in cast:
        score = config.rollout.score_microbatch_tokens_per_device
        budgets.append(("rollout.score_microbatch_tokens_per_device", score))
    for key, tokens in budgets:
        if tokens < needed:
            row = f"pair: {sequences} sequences" if sequences > 1 else "response with its prompt: a sequence"
            yield (
                f"{key} = {tokens} cannot hold the longest {row} of up to {longest} tokens,"
                f" {needed} when padded; set it to at least {needed}"
            )
