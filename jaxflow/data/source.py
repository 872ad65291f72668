"""Where a run's prompts and its tokenizer come from: a built-in task, or files and a tokenizer directory.

Knows no batches and no models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from jaxflow.data.prompts import load_rows
from jaxflow.data.tasks import TASKS
from jaxflow.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from jaxflow.types import PromptRow


@dataclasses.dataclass(frozen=True)
class Source:
    """The rows of a run."""

    train: tuple[PromptRow, ...]
    validation: tuple[PromptRow, ...]  # empty: nothing to validate on
    solution: Callable[[PromptRow], str] | None  # writes a right answer, for a warm start; None: unknown
    report: tuple[str, ...]  # what was read, kept and dropped, as lines


def load_tokenizer(task: str, directory: str) -> Tokenizer:
    """Return the Hugging Face tokenizer in `directory`, or the task's own if that is empty."""
    return HuggingFaceTokenizer(directory) if directory else TASKS[task]().tokenizer


def load_source(
    task: str,
    train_files: Sequence[str],
    validation_files: Sequence[str],
    tokenizer: Tokenizer,
    prompt_key: str,
    max_prompt_tokens: int,
    overlong_prompts: str,
    validation_prompts: int,
    seed: int,
) -> Source:
    """Read the files, or make the task's rows where none are given; UserError for what cannot be used.

    At most `validation_prompts` rows are validated on (0: all).
    """
    if not train_files:
        built_in = TASKS[task]()
        train, held_out = built_in.train_rows(seed), built_in.validation_rows(seed)
        solution, report = built_in.solution, (f"task {task}: {len(train):,} training prompts",)
    else:
        loaded = load_rows(train_files, tokenizer, prompt_key, max_prompt_tokens, overlong_prompts)
        train, held_out, solution, report = loaded.rows, (), None, (loaded.report.describe(),)
        if validation_files:
            held = load_rows(validation_files, tokenizer, prompt_key, max_prompt_tokens, overlong_prompts)
            held_out, report = held.rows, (*report, held.report.describe())
    validation = held_out if validation_prompts == 0 else held_out[:validation_prompts]
    return Source(train, validation, solution, (*report, f"validation: {len(validation):,} prompts"))
