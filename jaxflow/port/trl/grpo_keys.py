"""The arguments of TRL's GRPO trainer. Knows no setting of jaxflow's."""

from __future__ import annotations

from jaxflow.port.table import Key
from jaxflow.port.trl.trainer_keys import missing, shared_keys

_SOFT = "of another loss_type"

GRPO_KEYS: tuple[Key, ...] = (
    Key("num_generations", 8),
    Key("num_generations_eval", None, None, "jaxflow validates on one answer per prompt"),
    Key("max_completion_length", 512),
    Key("generation_batch_size", None),
    Key("steps_per_generation", None),
    Key("num_iterations", 1),
    Key("shuffle_dataset", True),
    Key("temperature", 1.0),
    Key("top_p", 1.0),
    Key("top_k", 0),
    Key("min_p", None),
    Key("beta", 0.0),
    Key("epsilon", 0.2),
    Key("epsilon_high", None),
    Key("delta", None),
    Key("loss_type", "dapo"),
    Key("importance_sampling_level", "token"),
    Key("scale_rewards", "group"),
    Key("multi_objective_aggregation", "sum_then_normalize"),
    Key("sapo_temperature_pos", 1.0),
    Key("sapo_temperature_neg", 1.05),
    *(Key(f"vespo_{name}", None, None, _SOFT) for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")),
    Key("entropy_coef", 0.0),
    Key("off_policy_mask_threshold", None),
    Key("use_vllm", False),
    Key("vllm_tensor_parallel_size", 1),
    Key("vllm_importance_sampling_correction", True),
    Key("vllm_importance_sampling_mode", "sequence_mask"),
    Key("vllm_importance_sampling_clip_max", 3.0),
    Key("vllm_importance_sampling_clip_min", None),
    Key("vllm_mode", "colocate", None, "jaxflow generates on the actor's devices"),
    *(
        Key(f"vllm_{name}", None, None, "of vLLM; jaxflow generates with its own model code")
        for name in (
            "model_impl",
            "enable_sleep_mode",
            "server_base_url",
            "server_host",
            "server_port",
            "server_timeout",
            "group_port",
            "gpu_memory_utilization",
            "max_model_length",
        )
    ),
    *(
        Key(name, None, None, "of transformers' generation; jaxflow generates with its own model code")
        for name in (
            "cache_implementation",
            "use_transformers_continuous_batching",
            "transformers_continuous_batching_config",
            "use_transformers_paged",
        )
    ),
    Key("reward_funcs", None),
    Key("reward_model_name_or_path", None),
    Key(
        "reward_weights",
        None,
        (None,),
        "one reward function gives one score",
        "weigh the parts inside compute_score",
    ),
    *missing(
        "jaxflow does not have it",
        "leave it at TRL's default",
        {
            "repetition_penalty": 1.0,
            "generation_kwargs": None,
            "chat_template_kwargs": None,
            "vllm_structured_outputs_regex": None,
            "mask_truncated_completions": False,
            "sync_ref_model": False,
            "top_entropy_quantile": 1.0,
            "use_adaptive_entropy": False,
            "use_bias_correction_kl": False,
            "max_tool_calling_iterations": None,
        },
    ),
    *(
        Key(name, None, None, "of a feature that is off")
        for name in (
            "ref_model_mixup_alpha",
            "ref_model_sync_steps",
            "entropy_coef_min",
            "entropy_coef_max",
            "entropy_coef_delta",
            "entropy_target",
        )
    ),
    Key(
        "router_aux_loss_coef",
        0.001,
        None,
        "read where the model's own config has output_router_logits: then actor.router_aux_loss_coefficient",
    ),
    *shared_keys(1e-6),
)
