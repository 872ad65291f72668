"""What in data, rewards and files cannot be. Looks whether files exist and opens none."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from jaxflow.config import Config
from jaxflow.data.tasks import TASKS
from jaxflow.placement import taught_judges
from jaxflow.rewards.function import read_arguments
from jaxflow.types import UserError


def reward_problems(config: Config) -> Iterator[str]:
    reward, steps = config.reward, config.warm_start.reward_steps
    if "reward" in taught_judges(config):
        return
    if reward.kind == "model":
        if not reward.weights and steps == 0:
            yield (
                "reward.kind = 'model' without weights: set reward.weights to their directory, or"
                " warm_start.reward_steps above 0 to learn them"
            )
        if reward.weights and steps > 0:
            yield (
                f"warm_start.reward_steps = {steps}, but reward.weights are given and would not be learnt; set one"
                " to 0 or the other to ''"
            )
        return
    for key, is_set in (
        ("reward.weights", bool(reward.weights)),
        ("reward.model", reward.model is not None),
        ("warm_start.reward_steps", steps > 0),
    ):
        if is_set:
            yield f"{key} is of a reward model, and reward.kind = {reward.kind!r}: unset it, or set the kind to model"


def scoring_problems(config: Config) -> Iterator[str]:
    reward, longest = config.reward, config.rollout.max_response_tokens
    if reward.function and reward.scorer:
        yield f"reward.scorer = {reward.scorer!r} and reward.function are both set: set one of them to ''"
    if reward.manager == "batch" and not reward.function:
        yield "reward.manager = 'batch' calls reward.function with lists: set the function, or the manager to naive"
    if reward.function_arguments and not reward.function:
        yield "reward.function_arguments without reward.function: set them to ''"
    try:
        read_arguments(reward.function_arguments)
    except UserError as error:
        yield str(error)
    buffer = reward.overlong_buffer_tokens
    if reward.manager != "dapo" and buffer > 0:
        yield (
            f"reward.overlong_buffer_tokens = {buffer} is of reward.manager = 'dapo', and it is {reward.manager!r}:"
            " set the tokens to 0, or the manager to dapo"
        )
    if reward.manager == "dapo" and not 1 <= buffer <= longest:
        yield (
            f"reward.overlong_buffer_tokens = {buffer}: reward.manager = 'dapo' needs it between 1 and"
            f" rollout.max_response_tokens ({longest})"
        )


def validation_problems(config: Config) -> Iterator[str]:
    samples = config.rollout.validation_samples
    if samples > 1 and config.rollout.validation_temperature == 0:
        yield (
            f"rollout.validation_samples = {samples}: greedy answers to a prompt are all the same; set"
            " rollout.validation_temperature above 0, or the samples to 1"
        )


def task_problems(config: Config) -> Iterator[str]:
    if config.data.train_files or config.data.task not in TASKS:
        return
    task = TASKS[config.data.task]()
    for path, tokens, needed in (
        ("data.max_prompt_tokens", config.data.max_prompt_tokens, task.max_prompt_tokens),
        ("rollout.max_response_tokens", config.rollout.max_response_tokens, task.max_response_tokens),
    ):
        if tokens < needed:
            yield f"{path} = {tokens}: the task {task.name} needs {needed}; set it to at least {needed}"


def file_problems(config: Config) -> Iterator[str]:
    data, function = config.data, config.reward.function
    for key in ("train_files", "validation_files", "pretraining_files"):
        for file in map(pathlib.Path, vars(data)[key]):
            if file.suffix not in (".jsonl", ".parquet"):
                yield f"data.{key}: {file} is neither .jsonl nor .parquet"
            elif not file.is_file():
                yield f"data.{key}: no such file: {file}"
    if data.train_files and not data.tokenizer:
        yield "data.train_files needs data.tokenizer: the directory of a Hugging Face tokenizer"
    if data.seed_key and not data.train_files:
        yield f"data.seed_key = {data.seed_key!r} names a column of data.train_files, and there are none; set it to ''"
    if data.train_files and config.warm_start.steps > 0:
        yield "warm_start.steps > 0 imitates the built-in task, which data.train_files replaces; set it to 0"
    if data.train_files and config.warm_start.reward_steps > 0:
        yield (
            "warm_start.reward_steps > 0 learns from the built-in task's answers, which data.train_files replaces;"
            " set it to 0 and reward.weights to a model's"
        )
    if data.tokenizer and not data.train_files:
        yield "data.tokenizer without data.train_files: a built-in task has its own tokenizer; set it to ''"
    if data.validation_files and not data.train_files:
        yield "data.validation_files without data.train_files: a built-in task validates on its own rows"
    for key, directory in (
        ("data.tokenizer", data.tokenizer),
        ("actor.weights", config.actor.weights),
        ("critic.weights", config.critic.weights),
        ("reward.weights", config.reward.weights),
        ("cost.weights", config.cost.weights),
    ):
        if directory and not pathlib.Path(directory).is_dir():
            yield f"{key}: no such directory: {directory}"
    for key, asked in (("reward.function", function), ("cost.function", config.cost.function)):
        source, _, name = asked.rpartition(":")
        if asked and not (source and name.isidentifier()):
            yield f"{key} = {asked!r}: expected path.py:function"
        elif asked and not pathlib.Path(source).is_file():
            yield f"{key}: no such file: {source}"
