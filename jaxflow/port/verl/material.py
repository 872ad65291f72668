"""verl's data, model and reward keys: which files, which weights, what judges. Knows no rule of learning."""

from __future__ import annotations

import json
import pathlib

from jaxflow.port.table import Idle, Is, Key, Outcome, Refused, Setting, Values, copied
from jaxflow.port.verl.sizes import MODEL, has_critic

_FUNCTION, _NAME = "reward.custom_reward_function.path", "reward.custom_reward_function.name"
_MANAGER = "reward.reward_manager.name"
_JUDGE = "reward.reward_model"
_ARGUMENTS = "reward.custom_reward_function.reward_kwargs"
_OVERLONG = "reward.reward_kwargs.overlong_buffer_cfg"
# verl's other managers call the function row by row as well, from more workers.
_MANAGERS = {
    "dapo": "dapo",
    "batch": "batch",
    **dict.fromkeys(("naive", "prime", "gdpo", "limited", "remote"), "naive"),
}

_PLACEHOLDER = "not given: this is verl's placeholder"

_NO_MODEL = Refused("no model is named", f"give {MODEL}.path: the directory of a model")

KEYS: tuple[Key, ...] = (
    Key("data.tokenizer", None),
    Key("data.train_files", "~/data/rlhf/gsm8k/train.parquet"),
    Key("data.val_files", "~/data/rlhf/gsm8k/test.parquet"),
    Key("data.train_max_samples", -1, (-1,), "jaxflow reads the training files whole", "write fewer rows"),
    Key("data.val_max_samples", -1),
    Key("data.prompt_key", "prompt"),
    Key(
        "data.reward_fn_key",
        "data_source",
        ("data_source",),
        "the column is data_source",
        "rename the column",
    ),
    Key("data.max_prompt_length", 512),
    Key("data.max_response_length", 512),
    Key("data.train_batch_size", 1024),
    Key("data.shuffle", True),
    Key("data.seed", None),
    Key("data.filter_overlong_prompts", False),
    Key("data.truncation", "error"),
    Key(f"{MODEL}.path", "~/models/deepseek-llm-7b-chat"),
    Key(f"{MODEL}.tokenizer_path", None),
    Key("critic.model.path", "~/models/deepseek-llm-7b-chat"),
    Key("critic.model.tokenizer_path", None, None, "one tokenizer serves all models"),
    Key(_FUNCTION, None),
    Key(_NAME, "compute_score"),
    Key(f"{_ARGUMENTS}.**", None),
    Key(_MANAGER, "naive"),
    Key(f"{_OVERLONG}.enable", False),
    Key(f"{_OVERLONG}.len", 0),
    Key(f"{_OVERLONG}.penalty_factor", 1.0),
    Key(f"{_OVERLONG}.log", False, None, "the share of punished responses is in the metrics"),
    Key(
        "reward.reward_kwargs.max_resp_len",
        "${data.max_response_length}",
        judge=lambda values: _longest_response(values),
    ),
    Key(
        "reward.reward_manager.source",
        "register",
        ("register",),
        "no managers of your own",
        "write a compute_score",
    ),
    Key("reward.reward_manager.module.**", None, None, "read with reward_manager.source = importlib alone"),
    Key(f"{_JUDGE}.enable", False),
    Key(f"{_JUDGE}.model_path", None),
    Key(
        f"{_JUDGE}.enable_resource_pool",
        False,
        (False,),
        "ported onto one pool",
        "give the role reward a pool of its own: configs/ppo_split.py shows how",
    ),
    Key(f"{_JUDGE}.n_gpus_per_node", 8, None, "of enable_resource_pool"),
    Key(f"{_JUDGE}.nnodes", 0, None, "of enable_resource_pool"),
    Key(f"{_JUDGE}.model.**", None, None, "the reward model's directory says it all"),
    Key(f"{_JUDGE}.megatron.**", None, None, "it stands in the actor's mesh"),
    Key(
        f"{_JUDGE}.micro_batch_size_per_gpu",
        None,
        None,
        "rollout.score_microbatch_tokens_per_device bounds it",
    ),
    Key(f"{_JUDGE}.strategy", None, None, "jaxflow has one engine"),
    Key(
        "reward.sandbox_fusion.url",
        None,
        (None,),
        "jaxflow judges in processes of its own",
        "use a reward function",
    ),
)


def _files(values: Values, key: str) -> tuple[str, ...]:
    files = values[key]
    listed = [files] if isinstance(files, str) else (files or [])
    return tuple(str(pathlib.Path(file).expanduser()) for file in listed)


def train_files(values: Values) -> tuple[str, ...]:
    """Return the training files, the home folder written out."""
    return _files(values, "data.train_files")


def _directory(path: object) -> str:
    return str(pathlib.Path(str(path)).expanduser())


def _shown(path: str) -> str:
    """Say what to do where a model is named as on the Hugging Face hub, which jaxflow never asks."""
    if pathlib.Path(path).is_dir():
        return ""
    return (
        "not a directory on this machine: jaxflow downloads nothing; fetch the model and give its directory"
    )


def _train_files(values: Values) -> Outcome:
    return Is(train_files(values), "" if "data.train_files" in values.given else _PLACEHOLDER)


def _validation_files(values: Values) -> Outcome:
    if "data.val_files" not in values.given:
        return Idle("verl's default is a placeholder: nothing is validated on")
    return Is(_files(values, "data.val_files"))


def _validation_prompts(values: Values) -> Outcome:
    samples = values["data.val_max_samples"]
    return Is(0, "all of them") if samples is None or samples < 0 else Is(samples)


def _overlong(values: Values) -> Outcome:
    if values["data.filter_overlong_prompts"]:
        return Is("drop", "dropped before the run, and counted")
    if values["data.truncation"] != "error":
        return Refused(
            f"jaxflow does not cut prompts ({values['data.truncation']})",
            "set data.overlong_prompts to drop, or cut the prompts in the files",
        )
    return Is("error")


def _seed(values: Values) -> Outcome:
    seed = values["data.seed"]
    return (
        Idle("verl draws an order of its own then; jaxflow's is that of run.seed")
        if seed is None
        else Is(seed)
    )


def _tokenizer(values: Values) -> Outcome:
    for key in ("data.tokenizer", f"{MODEL}.tokenizer_path", f"{MODEL}.path"):
        if values[key]:
            path = _directory(values[key])
            return Is(path, _shown(path))
    return _NO_MODEL


def _weights(values: Values) -> Outcome:
    if not values[f"{MODEL}.path"]:
        return _NO_MODEL
    path = _directory(values[f"{MODEL}.path"])
    return Is(path, _shown(path) if f"{MODEL}.path" in values.given else _PLACEHOLDER)


def _critic_weights(values: Values) -> Outcome:
    key = "critic.model.path"
    if not has_critic(values):
        return Idle("there is no critic")
    if key not in values.given:
        return Idle("verl's default is a placeholder; the critic starts from the actor's weights")
    if not values[key] or values[key] == values[f"{MODEL}.path"]:
        return Is("", "the actor's weights")
    path = _directory(values[key])
    return Is(path, _shown(path))


def _function(values: Values) -> Outcome:
    path = values[_FUNCTION]
    if path is None:
        return Idle("no file is given: rows are scored by their data_source")
    return Is(f"{_directory(path)}:{values[_NAME]}")


def _kind(values: Values) -> Outcome:
    return Is("model" if values[f"{_JUDGE}.enable"] else "function")


def _judge_weights(values: Values) -> Outcome:
    if not values[f"{_JUDGE}.enable"]:
        return Idle("reward_model.enable is false")
    path = values[f"{_JUDGE}.model_path"]
    if path is None:
        return Refused("a reward model is asked for and not named", f"give {_JUDGE}.model_path")
    return Is(_directory(path), _shown(_directory(path)))


def _longest_response(values: Values) -> Idle | Refused:
    said, longest = values["reward.reward_kwargs.max_resp_len"], values["data.max_response_length"]
    if said == longest:
        return Idle("it is data.max_response_length")
    return Refused(
        f"jaxflow's over-length penalty ends at data.max_response_length = {longest}", "set both to one"
    )


def _arguments(values: Values) -> Outcome:
    given = values.below(_ARGUMENTS)
    if not given:
        return Idle("none")
    tree: dict[str, object] = {}
    for name, value in given.items():
        *groups, last = name.split(".")
        group = tree
        for part in groups:
            group = group.setdefault(part, {})
        group[last] = value
    return Is(json.dumps(tree), "as JSON")


def _is_overlong(values: Values) -> bool:
    return values[_MANAGER] == "dapo" and bool(values[f"{_OVERLONG}.enable"])


def _manager(values: Values) -> Outcome:
    name = values[_MANAGER]
    if name not in _MANAGERS:
        return Refused(f"jaxflow has no reward manager {name!r}", f"choose one of {', '.join(_MANAGERS)}")
    if name == "dapo" and not _is_overlong(values):
        return Is("naive", "dapo without its over-length penalty is naive")
    return Is(_MANAGERS[name])


def _buffer(values: Values) -> Outcome:
    if not _is_overlong(values):
        return Idle("no over-length penalty: the manager is not dapo, or overlong_buffer is not enabled")
    return Is(values[f"{_OVERLONG}.len"], "tokens")


def _factor(values: Values) -> Outcome:
    return (
        Is(float(values[f"{_OVERLONG}.penalty_factor"]))
        if _is_overlong(values)
        else Idle("no over-length penalty")
    )


SETTINGS: tuple[Setting, ...] = (
    Setting("data.train_files", ("data.train_files",), "one file or a list; ~ is written out", _train_files),
    Setting(
        "data.validation_files",
        ("data.val_files",),
        "one file or a list; ~ is written out",
        _validation_files,
    ),
    Setting(
        "data.tokenizer",
        ("data.tokenizer", f"{MODEL}.tokenizer_path", f"{MODEL}.path"),
        "the first given",
        _tokenizer,
    ),
    copied("data.prompt_key", "data.prompt_key"),
    copied("data.prompts_per_step", "data.train_batch_size", "prompts; sequences are × rollout.n"),
    Setting("data.validation_prompts", ("data.val_max_samples",), "−1 (all) → 0", _validation_prompts),
    copied("data.max_prompt_tokens", "data.max_prompt_length", "tokens"),
    copied("rollout.max_response_tokens", "data.max_response_length", "tokens"),
    Setting(
        "data.overlong_prompts",
        ("data.filter_overlong_prompts", "data.truncation"),
        "drop where filtered, error where truncation is error",
        _overlong,
    ),
    copied("data.shuffle", "data.shuffle"),
    Setting("run.seed", ("data.seed",), "the same; null → jaxflow's own", _seed),
    Setting("actor.weights", (f"{MODEL}.path",), "a local directory in Hugging Face's form", _weights),
    Setting("critic.weights", ("critic.model.path",), "empty where it is the actor's", _critic_weights),
    Setting("reward.function", (_FUNCTION, _NAME), "path.py:name", _function),
    Setting("reward.kind", (f"{_JUDGE}.enable",), "model where enabled, else function", _kind),
    Setting(
        "reward.weights", (f"{_JUDGE}.model_path", f"{_JUDGE}.enable"), "a local directory", _judge_weights
    ),
    Setting("reward.function_arguments", (f"{_ARGUMENTS}.**",), "one JSON object", _arguments),
    Setting(
        "reward.manager", (_MANAGER, f"{_OVERLONG}.enable"), "dapo, batch; the others are naive", _manager
    ),
    Setting("reward.overlong_buffer_tokens", (f"{_OVERLONG}.len", f"{_OVERLONG}.enable"), "tokens", _buffer),
    Setting("reward.overlong_penalty_factor", (f"{_OVERLONG}.penalty_factor",), "the same", _factor),
)
