"""The arguments that TRL's trainers have in common: the Trainer's, the model's, the script's, the launcher's.

Names and defaults as of TRL 1.x and transformers 5 (July 2026). Knows no setting of jaxflow's.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxflow.port.table import Idle, Key, Refused, Values

_ADAM = ("adamw_torch_fused", "adamw_torch", "adamw_hf", "adamw_apex_fused", "adamw_8bit", "paged_adamw_8bit")


def _own(why: str, defaults: Mapping[str, object]) -> tuple[Key, ...]:
    return tuple(Key(name, default, None, why) for name, default in defaults.items())


def missing(why: str, instead: str, defaults: Mapping[str, object]) -> tuple[Key, ...]:
    """Return keys of features that jaxflow lacks: their defaults alone ask for nothing."""
    return tuple(Key(name, default, (default, None), why, instead) for name, default in defaults.items())


def _dropout(values: Values) -> Idle | Refused:
    if not values["use_peft"] or values["lora_dropout"] == 0:
        return Idle("no adapters, or none of their inputs dropped")
    return Refused("jaxflow's adapters have no dropout", "leave it at 0")


_COMMON: tuple[Key, ...] = (
    Key("num_processes", 1),
    Key("num_machines", 1),
    Key("per_device_train_batch_size", 8),
    Key("gradient_accumulation_steps", 1),
    Key("lr_scheduler_type", "linear"),
    Key("lr_scheduler_kwargs", None),
    Key("warmup_steps", 0),
    Key("warmup_ratio", None),
    Key("weight_decay", 0.0),
    Key("adam_beta1", 0.9),
    Key("adam_beta2", 0.999),
    Key("adam_epsilon", 1e-8),
    Key("max_grad_norm", 1.0),
    Key(
        "optim",
        "adamw_torch_fused",
        _ADAM,
        "AdamW with float32 moments is jaxflow's only optimizer",
        "retune for it",
    ),
    Key("num_train_epochs", 3.0),
    Key("max_steps", -1, None, "TRL's PPO counts total_episodes"),
    Key("seed", 42),
    Key("bf16", None),
    Key("fp16", False, (False, None), "jaxflow has no float16", "use bf16"),
    Key("gradient_checkpointing", True),
    Key("output_dir", None),
    Key("resume_from_checkpoint", None, (None, True), "a run is continued by its folder", "give --workdir"),
    Key("report_to", "none"),
    Key("save_strategy", "steps"),
    Key("save_steps", 500),
    Key("save_total_limit", None),
    Key("eval_strategy", "no"),
    Key("eval_steps", None),
    Key("eval_on_start", False),
    Key("deepspeed", None),
    Key("fsdp", None),
    Key("model_name_or_path", None),
    Key("dataset_name", None),
    Key("max_prompt_length", None),
    *_own(
        "how the Trainer works inside; results do not depend on it",
        {
            "tf32": None,
            "torch_compile": False,
            "torch_compile_backend": None,
            "torch_compile_mode": None,
            "use_liger_kernel": False,
            "liger_kernel_config": None,
            "use_cache": False,
            "torch_empty_cache_steps": None,
            "gradient_checkpointing_kwargs": None,
            "activation_checkpointing": None,
            "activation_checkpointing_kwargs": None,
            "average_tokens_across_devices": True,
            "optim_args": None,
            "bf16_full_eval": False,
            "fp16_full_eval": False,
            "accelerator_config": None,
            "parallelism_config": None,
            "fsdp_config": None,
            "dataloader_drop_last": False,
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": True,
            "dataloader_persistent_workers": False,
            "dataloader_prefetch_factor": None,
            "dataloader_multiprocessing_context": None,
            "dataloader_in_order": True,
            "dataset_num_proc": None,
            "remove_unused_columns": False,
            "label_names": None,
            "length_column_name": "length",
            "train_sampling_strategy": "random",
            "data_seed": None,
            "ddp_find_unused_parameters": None,
            "ddp_bucket_cap_mb": None,
            "ddp_broadcast_buffers": None,
            "ddp_static_graph": None,
            "ddp_backend": None,
            "ddp_timeout": 1800,
            "local_rank": -1,
            "debug": "",
            "skip_memory_metrics": True,
            "full_determinism": False,
            "prediction_loss_only": False,
            "ds3_gather_for_generation": True,
            "attn_implementation": None,
            "disable_dropout": False,
            "cast_lm_head_to_fp32": False,
            "pad_to_multiple_of": None,
            "do_train": False,
            "do_eval": False,
            "do_predict": False,
        },
    ),
    *_own(
        "jaxflow writes every step to metrics.jsonl and all validation answers to samples.jsonl",
        {
            "logging_strategy": "steps",
            "logging_steps": 10,
            "logging_first_step": False,
            "logging_nan_inf_filter": True,
            "logging_dir": None,
            "log_on_each_node": True,
            "log_level": "passive",
            "log_level_replica": "warning",
            "disable_tqdm": None,
            "include_num_input_tokens_seen": "no",
            "run_name": None,
            "project": "huggingface",
            "trackio_space_id": None,
            "trackio_bucket_id": None,
            "trackio_static_space_id": None,
            "log_completions": False,
            "log_multimodal": True,
            "num_completions_to_print": None,
            "log_unique_prompts": False,
            "log_completions_hub_repo": None,
            "num_sample_generations": 10,
        },
    ),
    *_own(
        "of the Trainer's evaluation; jaxflow's is rollout.validation_temperature and data.validation_prompts",
        {
            "eval_delay": 0,
            "per_device_eval_batch_size": 8,
            "eval_accumulation_steps": None,
            "eval_do_concat_batches": True,
            "eval_use_gather_object": False,
            "include_for_metrics": [],
            "batch_eval_metrics": False,
            "metric_for_best_model": None,
            "greater_is_better": None,
        },
    ),
    *_own(
        "a checkpoint of jaxflow's holds all that continues the run bitwise",
        {
            "save_only_model": False,
            "save_on_each_node": False,
            "enable_jit_checkpoint": False,
            "ignore_data_skip": False,
            "restore_callback_states_from_checkpoint": False,
        },
    ),
    *missing(
        "jaxflow uploads nothing",
        "export with python -m jaxflow.convert and upload that",
        {"push_to_hub": False, "hub_model_id": None},
    ),
    *_own(
        "of push_to_hub",
        {
            "hub_token": None,
            "hub_private_repo": None,
            "hub_strategy": "every_save",
            "hub_always_push": False,
            "hub_revision": None,
        },
    ),
    *missing(
        "jaxflow does not have it",
        "leave it off",
        {
            "auto_find_batch_size": False,
            "neftune_noise_alpha": None,
            "label_smoothing_factor": 0.0,
            "optim_target_modules": None,
            "load_best_model_at_end": False,
            "load_in_8bit": False,
            "load_in_4bit": False,
            "use_cpu": False,
            "model_init_kwargs": None,
        },
    ),
    Key("use_peft", False),
    Key("lora_r", 16),
    Key("lora_alpha", 32),
    Key("lora_target_modules", None),
    Key("lora_dropout", 0.05, judge=_dropout),
    *missing(
        "jaxflow has plain LoRA",
        "leave it off",
        {
            "lora_target_parameters": None,
            "lora_modules_to_save": None,
            "use_rslora": False,
            "use_dora": False,
        },
    ),
    Key("lora_task_type", "CAUSAL_LM", None, "every role has its own head"),
    Key("bnb_4bit_quant_storage", None, None, "of quantised loading"),
    *_own("of quantised loading", {"bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": False}),
    Key(
        "trust_remote_code",
        False,
        (False, None),
        "jaxflow runs no model's own code",
        "use a family it knows",
    ),
    Key("model_revision", "main", None, "a directory has one revision"),
    Key("dtype", "float32", None, "master weights are float32 in jaxflow, whatever they are loaded from"),
    Key(
        "dataset_config",
        None,
        (None,),
        "jaxflow reads local Parquet and JSONL files",
        "save the rows to a file",
    ),
    Key("dataset_train_split", "train", None, "the file that you give is the split"),
    Key("dataset_test_split", "test", None, "give data.validation_files by hand"),
    Key("dataset_streaming", False, None, "jaxflow reads the file whole"),
    Key("ignore_bias_buffers", False, None, "of torch"),
    *_own(
        "the launcher's",
        {
            "config_file": None,
            "config": None,
            "main_process_port": None,
            "main_process_ip": None,
            "machine_rank": None,
            "mixed_precision": None,
            "multi_gpu": None,
            "use_deepspeed": None,
            "zero_stage": None,
            "dynamo_backend": None,
            "accelerate_config": None,
            "gpu_ids": None,
        },
    ),
)


def shared_keys(learning_rate: float) -> tuple[Key, ...]:
    """Return the keys that every trainer of TRL's has, with its default learning rate."""
    return (Key("learning_rate", learning_rate), *_COMMON)
