"""verl's trainer and device keys: how long, how often, on which devices. Knows no rule of learning."""

from __future__ import annotations

import pathlib

from jaxflow.port.table import Idle, Is, Key, Outcome, Refused, Setting, Values, cast_of, copied, renamed
from jaxflow.port.verl.rule import dataflow_name
from jaxflow.port.verl.sizes import (
    ACTOR,
    ROLLOUT,
    devices,
    expert_size,
    generation_tensor_size,
    has_reference,
    is_megatron,
    replicas,
    tensor_size,
    total_steps,
    training_parallelism,
)

_WRITTEN = ("console", "file", "tensorboard")  # what jaxflow writes; the first two always
_MESH = "cluster.pools.main.mesh"

KEYS: tuple[Key, ...] = (
    Key(
        "config-name",
        "ppo_trainer",
        ("ppo_trainer", "ppo_megatron_trainer"),
        "a config of your own",
        "give its file",
    ),
    Key("config-dir", None, (None,), "a folder of configs of your own", "give the file itself"),
    Key("config-path", None, (None,), "a folder of configs of your own", "give the file itself"),
    Key(
        "model_engine",
        "dp",
        ("dp", "megatron", "veomni", "torchtitan", "automodel"),
        "an engine unknown here",
        "use dp",
    ),
    Key(f"{ACTOR}.model_engine", None, None, "verl reads the model_engine at the top"),
    Key("actor@actor_rollout_ref.actor", "dp_actor", None, "chooses verl's file of engine defaults"),
    Key("ref@actor_rollout_ref.ref", "dp_ref", None, "chooses verl's file of engine defaults"),
    Key("critic@critic", "dp_critic", None, "chooses verl's file of engine defaults"),
    Key(f"{ACTOR}.strategy", "fsdp", None, "jaxflow has one engine; the mesh says how it is cut"),
    Key(
        "actor_rollout_ref.ref.strategy", "fsdp", None, "jaxflow has one engine; the mesh says how it is cut"
    ),
    Key("critic.strategy", "fsdp", None, "jaxflow has one engine; the mesh says how it is cut"),
    Key("trainer.nnodes", 1),
    Key("trainer.n_gpus_per_node", 8),
    Key("trainer.device", "cuda"),
    Key("trainer.total_epochs", 30),
    Key("trainer.total_training_steps", None),
    Key("trainer.save_freq", -1),
    Key("trainer.test_freq", -1),
    Key("trainer.val_before_train", True),
    Key("trainer.max_actor_ckpt_to_keep", None),
    Key("trainer.max_critic_ckpt_to_keep", None, None, "jaxflow's checkpoints hold all models"),
    Key("trainer.resume_mode", "auto"),
    Key(
        "trainer.resume_from_path",
        None,
        (None,),
        "jaxflow continues what the workdir holds",
        "give --workdir",
    ),
    Key("trainer.logger", ["console", "wandb"]),
    Key("trainer.log_val_generations", 0),
    Key("trainer.project_name", "verl_examples"),
    Key("trainer.experiment_name", "gsm8k"),
    Key("trainer.default_local_dir", None),
    Key(f"{ACTOR}.fsdp_config.fsdp_size", -1),
    Key("actor_rollout_ref.ref.fsdp_config.fsdp_size", -1, None, "the reference stands in the actor's mesh"),
    Key("critic.fsdp.fsdp_size", -1, None, "the critic stands in the actor's mesh"),
    *(Key(f"{ACTOR}.megatron.{axis}_model_parallel_size", 1) for axis in ("tensor", "pipeline", "expert")),
    *(
        Key(f"{role}.megatron.{axis}_model_parallel_size", 1, None, "it stands in the actor's mesh")
        for role in ("actor_rollout_ref.ref", "critic")
        for axis in ("tensor", "pipeline", "expert")
    ),
    Key(f"{ROLLOUT}.tensor_model_parallel_size", 2),
    Key(
        f"{ROLLOUT}.pipeline_model_parallel_size",
        1,
        (1,),
        "the rollout's stages are training's own, or a divisor of them, and only a mesh knows which fit",
        "set it to 1, and cluster.pools.main.mesh.generation_pipe in the config that comes out",
    ),
)

_SIZES = (
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    f"{ACTOR}.megatron.tensor_model_parallel_size",
    f"{ACTOR}.megatron.pipeline_model_parallel_size",
    f"{ACTOR}.megatron.expert_model_parallel_size",
    f"{ROLLOUT}.tensor_model_parallel_size",
    f"{ACTOR}.strategy",
    "model_engine",
)


def _first(key: str) -> tuple[str, ...]:
    return (key, *(name for name in _SIZES if name != key))


def _steps(values: Values) -> Outcome:
    given, steps = values["trainer.total_training_steps"], total_steps(values)
    epochs, prompts = values["trainer.total_epochs"], values["data.train_batch_size"]
    if given is not None:
        return Is(steps, "steps, as given; trainer.total_epochs has no say then")
    if steps is None:
        return Refused(
            f"{epochs} epochs are epochs × ⌊rows / {prompts}⌋ steps, and the rows of data.train_files are not known",
            "give --rows=N or trainer.total_training_steps=N; until then run.total_steps is 0, which is refused",
            placeholder=0,
        )
    return Is(steps, f"{epochs} epochs × ⌊{values.rows} rows / {prompts} prompts⌋")


def _every(key: str) -> Setting:
    def outcome(values: Values) -> Outcome:
        return Is(max(0, values[key]))

    return Setting("run.evaluate_every_steps", (key,), "steps; −1 (never) → 0", outcome)


def _evaluate_after(values: Values) -> Outcome:
    return Is(values["trainer.test_freq"] > 0)


def _save_steps(values: Values) -> Outcome:
    return Is(max(0, values["trainer.save_freq"]))


def _save_minutes(values: Values) -> Outcome:
    return Is(0.0, "by steps alone, and at the end")


def _keep(values: Values) -> Outcome:
    kept = values["trainer.max_actor_ckpt_to_keep"]
    return (
        Idle("verl keeps all of them; set checkpoint.keep for more than jaxflow's two")
        if kept is None
        else Is(kept)
    )


def _tensorboard(values: Values) -> Outcome:
    if "trainer.logger" not in values.given:
        return Idle("the console, metrics.jsonl and TensorBoard")
    loggers = values["trainer.logger"]
    loggers = [loggers] if isinstance(loggers, str) else loggers
    if others := [name for name in loggers if name not in _WRITTEN]:
        return Refused(
            f"jaxflow does not write to {', '.join(map(str, others))}",
            "metrics.jsonl and TensorBoard have verl's metric names; send them on from there",
        )
    return Is("tensorboard" in loggers, "the console and metrics.jsonl are always written")


def _samples(values: Values) -> Outcome:
    count = values["trainer.log_val_generations"]
    return Is(count) if count > 0 else Idle("jaxflow shows a few and writes all to samples.jsonl")


def _workdir(values: Values) -> Outcome:
    folder = values["trainer.default_local_dir"]
    if folder is not None:
        return Is(str(pathlib.Path(folder).expanduser()))
    return Is(f"runs/{values['trainer.project_name']}/{values['trainer.experiment_name']}")


def _address(values: Values) -> Outcome:
    if values["trainer.nnodes"] == 1:
        return Is("", "a Ray of its own on this machine")
    return Is("auto", f"the Ray that runs on the {values['trainer.nnodes']} nodes: ray start on each")


def _tensor(values: Values) -> Outcome:
    training, rollout = training_parallelism(values)[0], generation_tensor_size(values)
    if replicas(values) is None:
        return Refused(
            f"{devices(values)} devices are no multiple of the model-parallel sizes",
            "choose cluster.pools.main.mesh by hand: --plan names the nearest",
        )
    if is_megatron(values):
        return Is(tensor_size(values), f"a multiple of training's {training} and the rollout's {rollout}")
    return Is(
        tensor_size(values), f"FSDP has no tensor axis, but the rollout's {rollout} is cut from this one"
    )


def _generation_tensor(values: Values) -> Outcome:
    if replicas(values) is None:
        return Idle("see tensor_model_parallel_size of training")
    asked, size = values[f"{ROLLOUT}.tensor_model_parallel_size"], generation_tensor_size(values)
    return Is(size, f"of {asked}: the mesh has no room for more beside the pipeline" if size < asked else "")


def _fsdp_size(values: Values) -> int:
    """Return the devices that share one copy of weights and optimizer, as many as whole replicas allow."""
    rest = (replicas(values) or 1) // expert_size(values)
    asked = values[f"{ACTOR}.fsdp_config.fsdp_size"]
    if is_megatron(values) or asked <= 0:
        return rest
    share = max(1, asked // tensor_size(values))
    return max(size for size in range(1, min(share, rest) + 1) if rest % size == 0)


def _fsdp(values: Values) -> Outcome:
    rest, tensor = replicas(values), tensor_size(values)
    if rest is None:
        return Idle("the mesh cannot be")
    sizes = (("tensor", tensor), ("pipe", training_parallelism(values)[1]), ("expert", expert_size(values)))
    cut = " × ".join(f"{axis} {size}" for axis, size in sizes if size > 1)
    engine = "Megatron's distributed optimizer" if is_megatron(values) else "FSDP"
    return Is(
        _fsdp_size(values),
        f"{devices(values)} devices" + (f" / ({cut})" if cut else "") + f"; {engine} shards over them",
    )


def _data(values: Values) -> Outcome:
    rest = replicas(values)
    return (
        Idle("the mesh cannot be") if rest is None else Is(rest // expert_size(values) // _fsdp_size(values))
    )


def _pipe(values: Values) -> Outcome:
    pipeline = training_parallelism(values)[1]
    if not is_megatron(values):
        return Idle("of Megatron, and this run trains with FSDP")
    return Is(pipeline) if replicas(values) is not None else Idle("the mesh cannot be")


def _expert(values: Values) -> Outcome:
    if not is_megatron(values):
        return Idle("of Megatron, and this run trains with FSDP")
    if replicas(values) is None:
        return Idle("the mesh cannot be")
    asked, size = training_parallelism(values)[2], expert_size(values)
    return Is(
        size, f"of {asked}: the axis is cut from the {replicas(values)} replicas" if size < asked else ""
    )


def _roles(values: Values) -> Outcome:
    return cast_of(dataflow_name(values), has_reference(values))


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "run.total_steps",
        ("trainer.total_epochs", "trainer.total_training_steps", "data.train_batch_size", "data.train_files"),
        "steps = epochs × ⌊rows of the training files / train_batch_size⌋, or total_training_steps",
        _steps,
    ),
    _every("trainer.test_freq"),
    copied("run.evaluate_before", "trainer.val_before_train"),
    Setting(
        "run.evaluate_after",
        ("trainer.test_freq",),
        "after the last step where test_freq > 0",
        _evaluate_after,
    ),
    Setting("checkpoint.every_steps", ("trainer.save_freq",), "steps; −1 (never) → 0", _save_steps),
    Setting(
        "checkpoint.every_minutes", ("trainer.save_freq",), "0: verl saves by steps alone", _save_minutes
    ),
    Setting(
        "checkpoint.keep",
        ("trainer.max_actor_ckpt_to_keep",),
        "newest kept; null (all) → jaxflow's own",
        _keep,
    ),
    renamed(
        "checkpoint.resume",
        "trainer.resume_mode",
        {"auto": "auto", "disable": "never"},
        "give --workdir: a run that it holds is continued",
    ),
    Setting("tracking.tensorboard", ("trainer.logger",), "console and file are always written", _tensorboard),
    Setting("tracking.samples_per_evaluation", ("trainer.log_val_generations",), "rows shown", _samples),
    Setting(
        "--workdir",
        ("trainer.default_local_dir", "trainer.project_name", "trainer.experiment_name"),
        "default_local_dir, else runs/project_name/experiment_name",
        _workdir,
    ),
    renamed(
        "cluster.platform",
        "trainer.device",
        {"cuda": "gpu", "cpu": "cpu"},
        "run on GPUs or simulated devices",
    ),
    Setting(
        "cluster.address", ("trainer.nnodes",), "auto (a running Ray) where there are several nodes", _address
    ),
    copied("cluster.pools.main.hosts", "trainer.nnodes"),
    copied("cluster.pools.main.devices_per_host", "trainer.n_gpus_per_node"),
    Setting(
        "cluster.pools.main.roles",
        ("algorithm.adv_estimator", "algorithm.use_kl_in_reward", f"{ACTOR}.use_kl_loss"),
        "the cast of the dataflow, all on one pool; a reference where a KL reads it",
        _roles,
    ),
    Setting(
        f"{_MESH}.tensor",
        _first(f"{ACTOR}.megatron.tensor_model_parallel_size"),
        "least common multiple of training's and the rollout's tensor sizes; FSDP's is 1",
        _tensor,
    ),
    Setting(
        f"{_MESH}.generation_tensor",
        _first(f"{ROLLOUT}.tensor_model_parallel_size"),
        "the same; jaxflow's rollout stands in the training mesh",
        _generation_tensor,
    ),
    Setting(
        f"{_MESH}.fsdp",
        (f"{ACTOR}.fsdp_config.fsdp_size", *_SIZES),
        "devices / (tensor × pipe × expert), or fsdp_size / tensor of it",
        _fsdp,
    ),
    Setting(f"{_MESH}.data", (f"{ACTOR}.fsdp_config.fsdp_size", *_SIZES), "devices left over", _data),
    Setting(f"{_MESH}.pipe", _first(f"{ACTOR}.megatron.pipeline_model_parallel_size"), "the same", _pipe),
    Setting(f"{_MESH}.expert", _first(f"{ACTOR}.megatron.expert_model_parallel_size"), "the same", _expert),
)
