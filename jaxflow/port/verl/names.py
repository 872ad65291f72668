"""verl's keys that ask nothing of a jaxflow config: how verl works inside, and what jaxflow does not do.

Names and defaults as of verl 0.8 (August 2026). Knows no setting; those are in the neighbouring files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxflow.port.table import Key
from jaxflow.port.verl.engines import ENGINE, INFERENCE, MEGATRON_ENGINE, MODEL, OPTIMIZER

_ROLES = ("actor_rollout_ref.actor", "actor_rollout_ref.ref", "critic")
_TRAINED = ("actor_rollout_ref.actor", "critic")
_MODELS = ("actor_rollout_ref.model", "critic.model")


def _own(prefixes: Iterable[str], why: str, defaults: Mapping[str, object]) -> tuple[Key, ...]:
    """Return keys whose value changes nothing for jaxflow."""
    return tuple(
        Key(f"{prefix}.{name}", default, None, why)
        for prefix in prefixes
        for name, default in defaults.items()
    )


def _missing(
    prefixes: Iterable[str], why: str, instead: str, defaults: Mapping[str, object]
) -> tuple[Key, ...]:
    """Return keys of features that jaxflow lacks: only their defaults (or off) ask for nothing."""
    return tuple(
        Key(f"{prefix}.{name}", default, (default, None), why, instead)
        for prefix in prefixes
        for name, default in defaults.items()
    )


_ENGINE_WHY = (
    "how verl's training engine works inside; XLA compiles jaxflow's, and results do not depend on it"
)
_ROLLOUT_WHY = "how verl's inference engine works inside; jaxflow generates with its own model code"

_FSDP = ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp")
_MEGATRON = tuple(f"{role}.megatron" for role in _ROLES)

_MULTI_TURN_INSTEAD = "port the single-turn part; tools and turns have no counterpart yet"

OWN_KEYS: tuple[Key, ...] = (
    *_own(("**",), "a Python class of verl's", {"_target_": None}),
    Key("defaults", None, None, "names verl's files of defaults, which are applied here"),
    Key("hydra.**", None, None, "Hydra's own"),
    *_own(_FSDP, _ENGINE_WHY, ENGINE),
    *_own(_MEGATRON, _ENGINE_WHY, MEGATRON_ENGINE),
    *_own(
        (f"{role}.{name}" for role in _ROLES for name in ("veomni", "torchtitan", "automodel", "engine")),
        _ENGINE_WHY,
        {"**": None},
    ),
    *_own(
        (f"{role}.optim" for role in _TRAINED),
        "no counterpart: jaxflow's optimizer is AdamW in float32",
        OPTIMIZER,
    ),
    *_missing(
        (*_FSDP, *_MEGATRON),
        "jaxflow has no quantisation-aware training and no replay of routing",
        "train in bfloat16",
        {"qat.enable": False, "router_replay.mode": "disabled"},
    ),
    *_own((*_FSDP, *_MEGATRON), _ENGINE_WHY, {"qat.**": None, "router_replay.**": None}),
    *_own(
        (*_ROLES, "actor_rollout_ref.rollout"),
        "profiles are taken with JAX's own profiler",
        {"profiler.**": None},
    ),
    *_own(
        _ROLES,
        _ENGINE_WHY,
        {
            "rollout_n": None,
            "use_torch_compile": True,
            "entropy_from_logits_with_chunking": False,
            "entropy_from_logits_chunk_size": 2048,
            "entropy_checkpointing": False,
            "pad_to_length": False,
            "use_remove_padding": True,
            "use_fused_kernels": False,
            "use_prefix_grouper": False,
            "nccl_timeout": 600,
            "calculate_entropy": False,
            "calculate_sum_pi_squared": False,
            "load_weight": True,
            "router_replay.**": None,
            "checkpoint.**": None,
            "qat.**": None,
            "data_loader_seed": 42,
            "shuffle": False,
        },
    ),
    *_own(
        ("actor_rollout_ref.actor",), "jaxflow's decoders are of text alone", {"freeze_vision_tower": False}
    ),
    *_missing(
        _ROLES,
        "jaxflow does not cut sequences over devices",
        "set micro-batch tokens that hold one sequence, and a larger tensor axis",
        {"ulysses_sequence_parallel_size": 1},
    ),
    *_missing(
        _FSDP,
        "jaxflow does not cut sequences over devices",
        "set micro-batch tokens that hold one sequence, and a larger tensor axis",
        {"ulysses_sequence_parallel_size": 1},
    ),
    *_missing(
        _MEGATRON,
        "jaxflow does not cut sequences over devices",
        "set micro-batch tokens that hold one sequence, and a larger tensor axis",
        {"context_parallel_size": 1},
    ),
    *_own(("actor_rollout_ref.rollout", "reward.reward_model.rollout"), _ROLLOUT_WHY, INFERENCE),
    *_own(
        ("actor_rollout_ref.rollout",),
        "always so in jaxflow",
        {"prompt_length": None, "response_length": None, "calculate_log_probs": True, "max_model_len": None},
    ),
    *_missing(
        ("actor_rollout_ref.rollout",),
        "jaxflow generates on the actor's devices, in its weights' precision or bfloat16",
        "leave it at verl's default",
        {
            "nnodes": 0,
            "over_sample_rate": 0,
            "enable_rollout_routing_replay": False,
            "quantization": None,
            "quantization_config_file": None,
            "disaggregation.enabled": False,
            "data_parallel_size": 1,
            "expert_parallel_size": 1,
        },
    ),
    *_own(
        ("actor_rollout_ref.rollout",),
        _ROLLOUT_WHY,
        {
            "disaggregation.**": None,
            "mtp": None,
            "mtp.**": None,
            "qat": None,
            "qat.**": None,
            "chat_scheduler": None,
        },
    ),
    *_missing(
        ("actor_rollout_ref.rollout",),
        "jaxflow's responses are one turn",
        _MULTI_TURN_INSTEAD,
        {
            "multi_turn.enable": False,
            "agent.agent_loop_config_path": None,
            "agent.default_agent_loop": "single_turn_agent",
            "agent.agent_loop_manager_class": None,
        },
    ),
    *_own(
        ("actor_rollout_ref.rollout",),
        "used in multi-turn runs alone",
        {"multi_turn.**": None, "agent.**": None},
    ),
    *_own(("reward.reward_model.rollout",), _ROLLOUT_WHY, {"**": None}),
    *_own(
        _MODELS,
        "jaxflow reads config.json, safetensors and tokenizer files, and runs none of a model's code",
        MODEL,
    ),
    *_missing(
        _MODELS,
        "jaxflow takes a model as its config.json says",
        "change config.json or the tokenizer's chat_template in a copy of the directory",
        {"custom_chat_template": None, "override_config": {}, "override_config.**": None},
    ),
    *_missing(_MODELS, "jaxflow has no multi-token prediction", "leave it off", {"mtp.enable": False}),
    *_own(_MODELS, "used with mtp.enable alone", {"mtp.**": None}),
    Key(
        "actor_rollout_ref.hybrid_engine",
        True,
        (True,),
        "jaxflow's actor always generates with its own weights",
        "leave it true",
    ),
    Key("actor_rollout_ref.nccl_timeout", 600, None, "cluster.stage_timeout_seconds bounds every call"),
    *_own(
        ("data",),
        "how verl's loader works inside",
        {
            "use_shm": False,
            "return_raw_input_ids": False,
            "return_raw_chat": True,
            "return_full_prompt": False,
            "dataloader_num_workers": 8,
            "num_workers": 8,
            "filter_overlong_prompts_workers": 1,
            "validation_shuffle": False,
            "val_batch_size": None,
            "trust_remote_code": False,
            "image_patch_size": 14,
            "image_key": "images",
            "video_key": "videos",
            "audio_key": "audios",
            "return_multi_modal_inputs": True,
            "mm_processor_kwargs": {},
            "mm_processor_kwargs.**": None,
            "datagen.**": None,
        },
    ),
    *_missing(
        ("data",),
        "jaxflow reads Parquet and JSONL rows as they are",
        "write the rows to a Parquet file first",
        {
            "custom_cls.path": None,
            "custom_cls.name": None,
            "sampler.class_path": None,
            "tool_config_path": None,
            "function_tool_path": None,
            "apply_chat_template_kwargs": {},
            "apply_chat_template_kwargs.**": None,
        },
    ),
    *_own(
        ("trainer",),
        "how verl's trainer works inside",
        {
            "balance_batch": True,
            "use_v1": True,
            "v1.sync": {},
            "v1.sampler.**": None,
            "v1.colocate_async.**": None,
            "v1.separate_async.**": None,
            "use_legacy_worker_impl": None,
            "ray_wait_register_center_timeout": 300,
            "esi_redundant_time": 0,
            "del_local_ckpt_after_load": False,
            "seed": None,
            "wandb_proxy": None,
        },
    ),
    *_own(
        ("trainer",),
        "samples.jsonl in the run's folder holds every validation answer",
        {"rollout_data_dir": None, "validation_data_dir": None},
    ),
    *_missing(
        ("trainer",),
        "jaxflow writes to a local or mounted folder",
        "give --workdir",
        {"default_hdfs_dir": None},
    ),
    *_missing(
        ("trainer",),
        "jaxflow's steps are synchronous, calls on other pools overlapping",
        "split the roles over pools and set rollout.parts",
        {"v1.trainer_mode": "sync"},
    ),
    *_missing(
        ("trainer",),
        "jaxflow has no run that only validates",
        "run with total_steps = 1",
        {"val_only": False},
    ),
    *_own(("reward",), "how verl's reward loop works inside", {"num_workers": 8}),
    *_own(
        ("sandbox_fusion", "reward.sandbox_fusion"),
        "used with sandbox_fusion.url alone",
        {"max_concurrent": 64, "memory_limit_mb": 1024},
    ),
    *_missing(("distillation",), "jaxflow has no distillation", "leave it off", {"enabled": False}),
    *_own(("distillation",), "used with distillation.enabled alone", {"**": None}),
    *_own(("transfer_queue",), "jaxflow's rows go from worker to worker by themselves", {"**": None}),
    *_own(("global_profiler",), "profiles are taken with JAX's own profiler", {"**": None}),
    *_missing(
        ("skip",),
        "jaxflow does not replay rollouts from disk",
        "leave it off",
        {"rollout.enable": False, "rollout_tq.enable": False, "async_rollout.enable": False},
    ),
    *_own(("skip",), "used where skip is on", {"**": None}),
    *_own(
        ("ray_kwargs", "ray_init"),
        "Ray is started by jaxflow; cluster.address joins a running one",
        {"**": None},
    ),
)

ALIASES: Mapping[str, str] = {
    "custom_reward_function": "reward.custom_reward_function",
    "sandbox_fusion": "reward.sandbox_fusion",
    "reward_model.sandbox_fusion": "reward.sandbox_fusion",
    "reward_model.num_workers": "reward.num_workers",
    "reward_model.reward_manager.name": "reward.reward_manager.name",
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_model.reward_loop_source": "reward.reward_manager.source",
    "reward_model.reward_loop_module_path": "reward.reward_manager.module.path",
    "reward_model.reward_loop_class_name": "reward.reward_manager.module.name",
    "reward_model.reward_kwargs": "reward.reward_kwargs",
    "reward_model.overlong_buffer": "reward.reward_kwargs.overlong_buffer_cfg",
    "reward_model.model.path": "reward.reward_model.model_path",
    "reward_model.model": "reward.reward_model.model",
    "reward_model": "reward.reward_model",
    "critic.model.fsdp_config": "critic.fsdp",
    "critic.fsdp_config": "critic.fsdp",
    "trainer.max_ckpt_to_keep": "trainer.max_actor_ckpt_to_keep",
    "trainer.val_generations_to_log_to_wandb": "trainer.log_val_generations",
    "actor_rollout_ref.rollout.micro_batch_size": "actor_rollout_ref.rollout.log_prob_micro_batch_size",
}
"""Spellings that older verl versions had, or today's verl still moves to a new place."""
