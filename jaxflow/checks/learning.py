"""What in the cast and in the sizes of its batches cannot be; the rule of learning itself is in `rule.py`."""

from __future__ import annotations

from collections.abc import Iterator

from jaxflow.batch_algebra import longest_sequence_tokens
from jaxflow.checks.placement import role_problems
from jaxflow.config import Config
from jaxflow.dataflow import Dataflow, load_dataflow
from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.types import UserError


def cast_problems(config: Config) -> Iterator[str]:
    dataflow = _dataflow(config)
    if isinstance(dataflow, UserError):
        yield str(dataflow)
        return
    placed = _placed(config)
    generators = ("generator",) if "generator" in placed else ()
    yield from role_problems(config, (*dataflow.playing(placed), *generators))


def _dataflow(config: Config) -> Dataflow | UserError:
    try:
        return load_dataflow(config.algorithm.name)
    except UserError as error:
        return error


def _placed(config: Config) -> set[str]:
    return {role for pool in config.cluster.pools.values() for role in pool.roles}


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
        if path.startswith("critic.") and not {"critic", "cost_critic"} & _placed(config):
            continue
        padded = ladder(longest + more, LENGTH_UNIT)
        if tokens < padded:
            reward_model = f", {longest + more} with the reward model's" if more else ""
            yield (
                f"{path} = {tokens} cannot hold the longest sequence: data.max_prompt_tokens"
                f" {config.data.max_prompt_tokens} + rollout.max_response_tokens"
                f" {config.rollout.max_response_tokens} = {longest}{reward_model}, {padded} when padded;"
                f" set it to at least {padded}"
            )
