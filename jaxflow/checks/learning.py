"""What in the rule of learning cannot be: the algorithm's keys together, and the sizes of its batches."""

from __future__ import annotations

from collections.abc import Iterator

from jaxflow.batch_algebra import longest_sequence_tokens
from jaxflow.checks.placement import role_problems
from jaxflow.config import Config
from jaxflow.dataflow import load_dataflow
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.types import UserError


def cast_problems(config: Config) -> Iterator[str]:
    try:
        cast = load_dataflow(config.algorithm.name).cast
    except UserError as error:
        yield str(error)
        return
    yield from role_problems(config, cast)


def rule_problems(config: Config) -> Iterator[str]:
    rule, kl = config.algorithm, config.algorithm.kl
    if rule.dual_clip != 0.0 and rule.dual_clip <= 1.0:
        yield f"algorithm.dual_clip = {rule.dual_clip}: must be above 1, or 0 to switch it off"
    if kl.controller == "adaptive" and kl.reward_coefficient == 0.0:
        yield (
            "algorithm.kl.reward_coefficient = 0 with algorithm.kl.controller = adaptive: the controller"
            " multiplies, so it would stay 0; start above 0 or set the controller to fixed"
        )


def token_problems(config: Config) -> Iterator[str]:
    """Say which micro-batches cannot hold the longest sequence that they may get."""
    longest = longest_sequence_tokens(config)
    # A reward model is read one position past the end; a wrong answer may be one token longer than a right one.
    judged = 1 if config.reward.kind == "model" else 0
    taught = 2 if judged and config.warm_start.reward_steps > 0 else 0
    for path, tokens, more in (
        ("actor.microbatch_tokens_per_device", config.actor.microbatch_tokens_per_device, taught),
        ("critic.microbatch_tokens_per_device", config.critic.microbatch_tokens_per_device, 0),
        (
            "rollout.score_microbatch_tokens_per_device",
            config.rollout.score_microbatch_tokens_per_device,
            judged,
        ),
    ):
        padded = ladder(longest + more, LENGTH_UNIT)
        if tokens < padded:
            reward_model = f", {longest + more} with the reward model's" if more else ""
            yield (
                f"{path} = {tokens} cannot hold the longest sequence: data.max_prompt_tokens"
                f" {config.data.max_prompt_tokens} + rollout.max_response_tokens"
                f" {config.rollout.max_response_tokens} = {longest}{reward_model}, {padded} when padded;"
                f" set it to at least {padded}"
            )
