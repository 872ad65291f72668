"""What follows from the arguments that TRL's trainers have in common. Knows no trainer: sizes come in as functions."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from jaxflow.engine.batching import LENGTH_UNIT, ladder
from jaxflow.port.adapters import HOW, targets_of
from jaxflow.port.table import Idle, Is, Outcome, Refused, Setting, Values, cast_of, copied, number

_WRITTEN = ("tensorboard", "none")
_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_MESH = "cluster.pools.main.mesh"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A trainer's batches, in sequences and optimizer updates."""

    prompts_per_step: Callable[[Values], int]  # P, per round of generation
    updates_per_step: Callable[[Values], int]  # optimizer updates that are made of one round
    longest_tokens: Callable[[Values], int]  # prompt and response
    steps: Callable[[Values], Outcome]  # of the run, as jaxflow counts them
    updates_per_count: Callable[[Values], int]  # updates in one of the steps that the trainer itself counts


def devices(values: Values) -> int:
    """Return the processes of the launcher, one per device."""
    return values["num_processes"]


def sequences_per_update(values: Values) -> int:
    """Return per-device batch × accumulation × processes: sequences of one optimizer update."""
    return values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * devices(values)


def shown_update(values: Values) -> str:
    """Write out `sequences_per_update`."""
    parts = (values["per_device_train_batch_size"], values["gradient_accumulation_steps"], devices(values))
    return "{} per device × {} accumulated × {} processes".format(*parts)


def longest(prompt_tokens: int, response_tokens: int) -> int:
    """Return the tokens of the longest sequence, padded as jaxflow pads it."""
    return ladder(prompt_tokens + response_tokens, LENGTH_UNIT)


def model_directory(key: str) -> Callable[[Values], Outcome]:
    """Return the outcome of a key that names a model."""

    def outcome(values: Values) -> Outcome:
        if values[key] is None:
            return Refused("no model is named", f"give --{key}")
        path = pathlib.Path(str(values[key])).expanduser()
        return Is(
            str(path),
            "" if path.is_dir() else "not a directory here: fetch the model, jaxflow downloads nothing",
        )

    return outcome


def _files(values: Values) -> Outcome:
    named = values["dataset_name"]
    if isinstance(named, str) and named.endswith((".parquet", ".jsonl")):
        return Is((str(pathlib.Path(named).expanduser()),))
    return Refused(
        f"jaxflow reads local files, not {named!r}",
        "save the rows: datasets.load_dataset(NAME, split=SPLIT).to_parquet(FILE), with a column prompt",
    )


def _schedule(values: Values) -> Outcome:
    name = values["lr_scheduler_type"]
    if name in _SCHEDULES:
        return Is(_SCHEDULES[name])
    return Refused(f"jaxflow has no schedule {name!r}", f"choose one of {', '.join(_SCHEDULES)}")


def _final_fraction(values: Values) -> Outcome:
    extra = values["lr_scheduler_kwargs"] or {}
    if not isinstance(extra, dict) or set(extra) - {"min_lr", "min_lr_rate"}:
        return Refused(f"jaxflow's schedules have no {extra}", "leave it out")
    if "min_lr" in extra:
        return Is(extra["min_lr"] / values["learning_rate"], f"min_lr {extra['min_lr']:g} / learning_rate")
    return Is(float(extra.get("min_lr_rate", 0.0)))


def _warmup(sizes: Sizes) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        given = values["warmup_ratio"] if values["warmup_ratio"] is not None else values["warmup_steps"]
        if given >= 1 or given == 0:
            unit = sizes.updates_per_count(values)
            return Is(int(given) * unit, f"{given} × {unit} updates" if unit > 1 else "")
        steps = sizes.steps(values)
        if not isinstance(steps, Is):
            return Refused(f"{given} of an unknown number of steps", "give --rows=N or --max_steps N")
        updates = steps.value * sizes.updates_per_step(values)
        return Is(int(given * updates), f"{given} × {updates} updates")

    return outcome


def _in_steps(key: str, strategy: str, sizes: Sizes) -> Callable[[Values], Outcome]:
    """Turn the steps that the trainer counts into jaxflow's: rounds of generation."""

    def outcome(values: Values) -> Outcome:
        if values[strategy] == "no":
            return Is(0)
        if values[strategy] == "epoch":
            if values.rows is None:
                return Refused("once per epoch, of an unknown number of rows", "give --rows=N")
            return Is(values.rows // sizes.prompts_per_step(values), "steps of an epoch")
        counts = values[key] if values[key] is not None else values["logging_steps"]
        per_step = sizes.updates_per_step(values) // sizes.updates_per_count(values)
        if 0 < counts < 1:
            total = sizes.steps(values)
            if not isinstance(total, Is):
                return Refused(
                    f"{counts} of an unknown number of steps", "give --rows=N or the steps themselves"
                )
            return Is(max(1, round(counts * total.value)), f"{counts} × {total.value} steps")
        return Is(max(1, round(counts / per_step)), f"{counts} / {per_step} per step")

    return outcome


def _evaluates(values: Values) -> Outcome:
    return Is(values["eval_strategy"] != "no")


def _keep(values: Values) -> Outcome:
    limit = values["save_total_limit"]
    return (
        Idle("TRL keeps all of them; set checkpoint.keep for more than jaxflow's two")
        if limit is None
        else Is(limit)
    )


def _tensorboard(values: Values) -> Outcome:
    named = values["report_to"]
    names = [named] if isinstance(named, str) else list(named or [])
    if others := [name for name in names if name not in _WRITTEN]:
        return Refused(
            f"jaxflow does not write to {', '.join(others)}",
            "metrics.jsonl and TensorBoard have every metric",
        )
    return Is("tensorboard" in names)


def _fsdp(values: Values) -> Outcome:
    sharded = values["deepspeed"] is not None or values["fsdp"] not in (None, "", [], False)
    size = devices(values) // _tensor_size(values)
    return (
        Is(size, "DeepSpeed or FSDP shard over the processes")
        if sharded
        else Is(1, "every process holds all weights")
    )


def _data(values: Values) -> Outcome:
    fsdp = _fsdp(values)
    return Is(devices(values) // _tensor_size(values) // (fsdp.value if isinstance(fsdp, Is) else 1))


def _tensor_size(values: Values) -> int:
    key = "vllm_tensor_parallel_size"
    return values[key] if key in values.defaults and values["use_vllm"] else 1


def _tensor(values: Values) -> Outcome:
    return Is(_tensor_size(values))


def _compute_dtype(values: Values) -> Outcome:
    return Is(
        "bfloat16" if values["bf16"] is not False else "float32",
        "TRL's default" if values["bf16"] is None else "",
    )


def _tokens(sizes: Sizes) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        sequences, tokens = values["per_device_train_batch_size"], sizes.longest_tokens(values)
        return Is(sequences * tokens, f"{sequences} sequences × {tokens} padded tokens")

    return outcome


def optimizer_settings(section: str, sizes: Sizes) -> tuple[Setting, ...]:
    """Return the settings of one model's optimizer, from the one that TRL has."""
    target = f"{section}.optimizer"
    return (
        number(f"{target}.learning_rate", "learning_rate"),
        Setting(f"{target}.schedule", ("lr_scheduler_type",), ", ".join(_SCHEDULES), _schedule),
        Setting(
            f"{target}.final_fraction",
            ("lr_scheduler_kwargs",),
            "min_lr / learning_rate, or min_lr_rate",
            _final_fraction,
        ),
        Setting(
            f"{target}.warmup_updates",
            ("warmup_steps", "warmup_ratio"),
            "optimizer updates; below 1 a share of them all",
            _warmup(sizes),
        ),
        number(f"{target}.weight_decay", "weight_decay"),
        number(f"{target}.beta1", "adam_beta1"),
        number(f"{target}.beta2", "adam_beta2"),
        number(f"{target}.epsilon", "adam_epsilon"),
        number(f"{target}.clip_norm", "max_grad_norm"),
    )


def shared_settings(sizes: Sizes, dataflow: str, kl: str) -> tuple[Setting, ...]:
    """Return the settings that every trainer of TRL's has; `kl` is the key of its KL coefficient."""
    return (
        *_run_settings(sizes),
        *_cluster_settings(dataflow, kl),
        *_material_settings(sizes),
        *optimizer_settings("actor", sizes),
        *_adapter_settings("actor"),
    )


def _run_settings(sizes: Sizes) -> tuple[Setting, ...]:
    return (
        copied("run.seed", "seed"),
        Setting(
            "run.evaluate_every_steps",
            ("eval_steps", "eval_strategy"),
            "steps = what the trainer counts / counts per step",
            _in_steps("eval_steps", "eval_strategy", sizes),
        ),
        copied("run.evaluate_before", "eval_on_start"),
        Setting("run.evaluate_after", ("eval_strategy",), "unless no", _evaluates),
        Setting(
            "checkpoint.every_steps",
            ("save_steps", "save_strategy"),
            "steps = what the trainer counts / counts per step",
            _in_steps("save_steps", "save_strategy", sizes),
        ),
        Setting("checkpoint.every_minutes", ("save_strategy",), "0: by steps alone", lambda values: Is(0.0)),
        Setting("checkpoint.keep", ("save_total_limit",), "the same; null (all) → jaxflow's own", _keep),
        Setting("tracking.tensorboard", ("report_to",), "others are not written", _tensorboard),
        Setting(
            "--workdir",
            ("output_dir",),
            "the same",
            lambda values: (
                Idle("a folder under runs/") if values["output_dir"] is None else Is(values["output_dir"])
            ),
        ),
    )


def _cluster_settings(dataflow: str, kl: str) -> tuple[Setting, ...]:
    return (
        Setting("cluster.platform", ("num_processes",), "gpu", lambda values: Is("gpu")),
        Setting(
            "cluster.address",
            ("num_machines",),
            "auto (a running Ray) for several machines",
            lambda values: Is("auto" if values["num_machines"] > 1 else ""),
        ),
        copied("cluster.pools.main.hosts", "num_machines"),
        Setting(
            "cluster.pools.main.devices_per_host",
            ("num_processes", "num_machines"),
            "processes / machines",
            lambda values: Is(devices(values) // values["num_machines"]),
        ),
        Setting(
            "cluster.pools.main.roles",
            (kl,),
            "the cast of the dataflow, all on one pool; a reference where a KL reads it",
            lambda values: cast_of(dataflow, values[kl] != 0),
        ),
        Setting(f"{_MESH}.data", ("num_processes",), "processes / (fsdp × tensor)", _data),
        Setting(
            f"{_MESH}.fsdp",
            ("deepspeed", "fsdp", "num_processes"),
            "all processes where one of them shards",
            _fsdp,
        ),
    )


def _material_settings(sizes: Sizes) -> tuple[Setting, ...]:
    return (
        Setting("data.train_files", ("dataset_name",), "a local Parquet or JSONL file", _files),
        Setting(
            "data.tokenizer",
            ("model_name_or_path",),
            "a local directory",
            model_directory("model_name_or_path"),
        ),
        Setting(
            "data.max_prompt_tokens",
            ("max_prompt_length",),
            "tokens; today's TRL has no limit, so give one",
            lambda values: (
                Idle("no limit in TRL; jaxflow's default stands, and drops longer prompts")
                if values["max_prompt_length"] is None
                else Is(values["max_prompt_length"])
            ),
        ),
        copied("actor.model.remat", "gradient_checkpointing"),
        Setting("actor.model.compute_dtype", ("bf16",), "bfloat16 unless false", _compute_dtype),
        Setting("rollout.dtype", ("bf16",), "bfloat16 unless false", _compute_dtype),
        Setting(
            "actor.microbatch_tokens_per_device",
            ("per_device_train_batch_size",),
            "padded tokens = sequences × (prompt + completion)",
            _tokens(sizes),
        ),
    )


def _adapters(which: str) -> Callable[[Values], Outcome]:
    def outcome(values: Values) -> Outcome:
        if not values["use_peft"]:
            return Is(0, "use_peft is false") if which == "rank" else Idle("use_peft is false")
        if which == "rank":
            dropped = (
                "" if values["lora_dropout"] == 0 else f"without TRL's dropout of {values['lora_dropout']}"
            )
            return Is(values["lora_r"], dropped)
        if which == "alpha":
            return Is(float(values["lora_alpha"]))
        modules = values["lora_target_modules"]
        if modules is None:
            return Is(("query", "value"), "peft's own choice for these families")
        return targets_of(modules, [])

    return outcome


def _adapter_settings(section: str) -> tuple[Setting, ...]:
    return (
        Setting(f"{section}.lora.rank", ("lora_r", "use_peft"), "0 without use_peft", _adapters("rank")),
        Setting(f"{section}.lora.alpha", ("lora_alpha", "use_peft"), "the same", _adapters("alpha")),
        Setting(f"{section}.lora.targets", ("lora_target_modules", "use_peft"), HOW, _adapters("targets")),
    )


def tensor_settings() -> tuple[Setting, ...]:
    """Return the settings of a rollout that is cut over devices."""
    reads = ("vllm_tensor_parallel_size", "use_vllm")
    return (
        Setting(f"{_MESH}.tensor", reads, "1 without vLLM", _tensor),
        Setting(f"{_MESH}.generation_tensor", reads, "1 without vLLM", _tensor),
    )


def epochs_to_steps(values: Values, prompts_per_step: int, updates_per_step: int) -> Outcome:
    """Return the steps of a run from max_steps (updates) or from epochs over the rows."""
    if values["max_steps"] > 0:
        shown = f"{values['max_steps']} updates / {updates_per_step} per step"
        return Is(max(1, round(values["max_steps"] / updates_per_step)), shown)
    epochs = values["num_train_epochs"]
    if values.rows is None:
        return Refused(
            f"{epochs:g} epochs over an unknown number of rows",
            "give --rows=N or --max_steps N; until then run.total_steps is 0, which is refused",
            placeholder=0,
        )
    per_epoch = values.rows // prompts_per_step
    return Is(
        max(1, int(epochs * per_epoch)),
        f"{epochs:g} epochs × ⌊{values.rows} rows / {prompts_per_step} prompts⌋",
    )
