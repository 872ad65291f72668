"""Where a run's rows and its tokenizer come from: a built-in task, or files and a tokenizer directory.

Knows no batches and no models.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from jaxflow.data.prompts import load_rows, prompt_lengths
from jaxflow.data.records import Account
from jaxflow.data.supervised import (
    DemonstrationRow,
    JudgedRow,
    Keys,
    Limits,
    PreferenceRow,
    load_demonstrations,
    load_judgements,
    load_preferences,
)
from jaxflow.data.tasks import TASKS, Task
from jaxflow.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from jaxflow.types import PromptRow

Row = PromptRow | DemonstrationRow | JudgedRow | PreferenceRow


@dataclasses.dataclass(frozen=True)
class Source:
    """The rows of a run."""

    train: tuple[Row, ...]  # of the kind that the run's algorithm reads
    validation: tuple[Row, ...]  # empty: nothing to validate on
    # Writes an answer to imitate, for a warm start; None: unknown
    solution: Callable[[PromptRow], str] | None
    report: tuple[str, ...]  # what was read, kept and dropped, as lines

    @property
    def train_prompts(self) -> tuple[PromptRow, ...]:
        """Return what is asked in the rows to learn from."""
        return tuple(map(_asked, self.train))

    @property
    def validation_prompts(self) -> tuple[PromptRow, ...]:
        """Return what is asked in the rows held out."""
        return tuple(map(_asked, self.validation))


def load_tokenizer(task: str, directory: str) -> Tokenizer:
    """Return the Hugging Face tokenizer in `directory`, or the task's own if that is empty."""
    return HuggingFaceTokenizer(directory) if directory else TASKS[task]().tokenizer


def load_source(
    task: str,
    train_files: Sequence[str],
    validation_files: Sequence[str],
    tokenizer: Tokenizer,
    prompt_key: str,
    seed_key: str,
    max_prompt_tokens: int,
    overlong_prompts: str,
    validation_prompts: int,
    seed: int,
) -> Source:
    """Read prompts from the files, or make the task's where none are given; UserError for what cannot be used.

    At most `validation_prompts` rows are validated on (0: all).
    """
    if not train_files:
        built_in = TASKS[task]()
        train, held_out = built_in.train_rows(seed), built_in.validation_rows(seed)
        return _source(train, held_out, built_in, (), validation_prompts, "prompts")
    loaded = load_rows(train_files, tokenizer, prompt_key, seed_key, max_prompt_tokens, overlong_prompts)
    held_out, report = (), (loaded.report.describe(),)
    if validation_files:
        held = load_rows(
            validation_files, tokenizer, prompt_key, seed_key, max_prompt_tokens, overlong_prompts
        )
        held_out, report = held.rows, (*report, held.report.describe())
    return _source(loaded.rows, held_out, None, report, validation_prompts, "prompts")


def load_supervised_source(
    kind: str,
    task: str,
    train_files: Sequence[str],
    validation_files: Sequence[str],
    tokenizer: Tokenizer,
    keys: Keys,
    limits: Limits,
    validation_rows: int,
    seed: int,
) -> Source:
    """Read rows with their responses, or make the task's; UserError for what cannot be used.

    Args:
        kind: demonstrations | judgements | preferences | safety_preferences, whose chosen responses are the safer ones.
        task: built-in task, read where `train_files` is empty.
        train_files: .jsonl or .parquet.
        validation_files: of the same columns; none: nothing is held out.
        tokenizer: of prompts and responses.
        keys: the names of the columns.
        limits: how long a row may be.
        validation_rows: held out at most, 0: all.
        seed: of the task's split and of its pairs.
    """

    def load(files: Sequence[str]) -> tuple[tuple[Row, ...], str]:
        account: Account
        if kind == "judgements":
            account = load_judgements(files, tokenizer, keys, limits)
            rows = tuple(itertools.chain(*account.rows))
        else:
            account = _loaded(kind, files, tokenizer, keys, limits)
            rows = account.rows
        return rows, "\n".join([*account.describe(), *_labels(rows), _lengths(rows)])

    if not train_files:
        built_in = TASKS[task]()
        train, held_out = (
            _made(built_in, rows, kind, seed, tokenizer)
            for rows in (built_in.train_rows(seed), built_in.validation_rows(seed))
        )
        return _source(train, held_out, built_in, (), validation_rows, kind)
    loaded = [load(files) for files in (train_files, validation_files) if files]
    held_out = loaded[1][0] if validation_files else ()
    return _source(loaded[0][0], held_out, None, tuple(said for _, said in loaded), validation_rows, kind)


def _loaded(
    kind: str, files: Sequence[str], tokenizer: Tokenizer, keys: Keys, limits: Limits
) -> Account[DemonstrationRow] | Account[PreferenceRow]:
    if kind == "demonstrations":
        return load_demonstrations(files, tokenizer, keys, limits)
    return load_preferences(files, tokenizer, keys, limits, kind == "safety_preferences")


def _made(
    task: Task, rows: Sequence[PromptRow], kind: str, seed: int, tokenizer: Tokenizer
) -> tuple[Row, ...]:
    if kind == "judgements":
        return tuple(itertools.chain(*(pair.judged for pair in task.pairs(rows, seed, False))))
    if kind != "demonstrations":
        return task.pairs(rows, seed, kind == "safety_preferences")
    end = tokenizer.end_ids[0]
    return tuple(DemonstrationRow(row, (*tokenizer.encode(task.solution(row)), end)) for row in rows)


def _source(
    train: tuple[Row, ...],
    held_out: tuple[Row, ...],
    task: Task | None,
    report: tuple[str, ...],
    validation_rows: int,
    kind: str,
) -> Source:
    words = kind.replace("_", " ")
    if task is not None:
        report = (f"task {task.name}: {len(train):,} training {words}",)
    validation = held_out if validation_rows == 0 else held_out[:validation_rows]
    solution = None if task is None else task.solution
    return Source(train, validation, solution, (*report, f"validation: {len(validation):,} {words}"))


def _asked(row: Row) -> PromptRow:
    return row if isinstance(row, PromptRow) else row.asked


def _labels(rows: Sequence[Row]) -> list[str]:
    """Say how many responses were wanted, where rows are judged: by that their weights are chosen."""
    judged = [row.wanted for row in rows if isinstance(row, JudgedRow)]
    return (
        [f"{sum(judged):,} wanted responses, {len(judged) - sum(judged):,} unwanted ones"] if judged else []
    )


def _lengths(rows: Sequence[DemonstrationRow | JudgedRow | PreferenceRow]) -> str:
    asked = prompt_lengths([row.asked for row in rows])
    responses = [len(response) for row in rows for response in row.responses]
    return (
        f"prompt tokens: mean {asked.mean:,.1f}, max {asked.maximum:,}; response tokens: mean"
        f" {sum(responses) / len(responses):,.1f}, max {max(responses):,}"
    )
