"""The rows that a run reads, as its config asks for them: of its steps, and beside them. Knows no process, no batch."""

from __future__ import annotations

from jaxflow.config import Config
from jaxflow.data.source import Source, load_source, load_supervised_source
from jaxflow.data.supervised import Keys, Limits
from jaxflow.data.tokenizer import Tokenizer
from jaxflow.dataflow import PROMPTS, load_dataflow


def step_rows(config: Config, tokenizer: Tokenizer) -> Source:
    """Read the rows that the batches of steps are made of; UserError for what cannot be used."""
    data, kind = config.data, load_dataflow(config.algorithm.name).batches
    files = (data.train_files, data.validation_files)
    if kind != PROMPTS:
        return _supervised(config, kind, files, tokenizer, data.validation_prompts)
    return load_source(
        data.task,
        *files,
        tokenizer,
        data.prompt_key,
        data.seed_key,
        data.max_prompt_tokens,
        data.overlong_prompts,
        data.validation_prompts,
        config.run.seed,
    )


def pretraining_rows(config: Config, tokenizer: Tokenizer) -> Source:
    """Read the demonstrations of the role pretraining: those of files, or the built-in task's own solutions."""
    return _supervised(config, "demonstrations", (config.data.pretraining_files, ()), tokenizer, 0)


def _supervised(
    config: Config,
    kind: str,
    files: tuple[tuple[str, ...], tuple[str, ...]],
    tokenizer: Tokenizer,
    validation_rows: int,
) -> Source:
    data = config.data
    keys = Keys(
        data.prompt_key,
        data.response_key,
        data.chosen_key,
        data.rejected_key,
        data.label_key,
        data.margin_key,
        data.chosen_safe_key,
        data.rejected_safe_key,
    )
    limits = Limits(data.max_prompt_tokens, config.rollout.max_response_tokens, data.overlong_prompts)
    seed = config.run.seed
    return load_supervised_source(kind, data.task, *files, tokenizer, keys, limits, validation_rows, seed)
