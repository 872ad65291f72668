"""Units, conditions and devices of a verl config, each against numbers worked out by hand."""

import pytest
from port.material import assigned, verl

from jaxflow.config import Config, flatten

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
CORRECTION = "algorithm.rollout_correction"


def written(*overrides):
    """What the ported run has, jaxflow's defaults included."""
    return {**flatten(Config()), **assigned(verl(*overrides))}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("data.train_batch_size=512", f"{ROLLOUT}.n=8"),
            {
                "data.prompts_per_step": 512,
                "rollout.samples_per_prompt": 8,
                "actor.minibatch_sequences": 2048,
                "critic.minibatch_sequences": 2048,
            },
        ),
        (
            ("critic.ppo_mini_batch_size=64", f"{ROLLOUT}.n=2"),
            {"critic.minibatch_sequences": 128, "actor.minibatch_sequences": 512},
        ),
        (
            (
                f"{ACTOR}.ppo_micro_batch_size_per_gpu=3",
                "data.max_prompt_length=500",
                "data.max_response_length=500",
            ),
            {"actor.microbatch_tokens_per_device": 3 * 1024},
        ),
        (
            (f"{ACTOR}.ppo_micro_batch_size=64", "trainer.nnodes=2"),
            {"actor.microbatch_tokens_per_device": 4 * 1024},
        ),
        (
            (f"{ACTOR}.use_dynamic_bsz=true", f"{ACTOR}.ppo_max_token_len_per_gpu=9000"),
            {
                "actor.microbatch_tokens_per_device": 9000,
                "critic.microbatch_tokens_per_device": 32768,
                "rollout.score_microbatch_tokens_per_device": 9000,
            },
        ),
        (
            (f"{ACTOR}.use_dynamic_bsz=true", f"{ACTOR}.ppo_max_token_len_per_gpu=10"),
            {"actor.microbatch_tokens_per_device": 1024},
        ),
        (("trainer.total_epochs=2", "data.train_batch_size=300"), {"run.total_steps": 6}),
        (("trainer.total_training_steps=77", "trainer.total_epochs=9"), {"run.total_steps": 77}),
        (
            ("trainer.save_freq=-1", "trainer.test_freq=-1"),
            {
                "checkpoint.every_steps": 0,
                "checkpoint.every_minutes": 0.0,
                "run.evaluate_every_steps": 0,
                "run.evaluate_after": False,
            },
        ),
        (
            (f"{ACTOR}.optim.lr_warmup_steps_ratio=0.1", "trainer.total_training_steps=50"),
            {"actor.optimizer.warmup_updates": 5 * 4},
        ),
        (
            (f"{ACTOR}.optim.lr_scheduler_type=cosine", f"{ACTOR}.optim.min_lr_ratio=0.1"),
            {"actor.optimizer.schedule": "cosine", "actor.optimizer.final_fraction": 0.1},
        ),
        ((f"{ACTOR}.optim.warmup_style=cosine",), {"actor.optimizer.schedule": "cosine"}),
        (
            (f"{ACTOR}.optim.betas=[0.9,0.95]", f"{ACTOR}.grad_clip=0.5"),
            {"actor.optimizer.beta2": 0.95, "actor.optimizer.clip_norm": 0.5},
        ),
        ((f"{ACTOR}.grad_clip=0.5", f"{ACTOR}.optim.clip_grad=2.0"), {"actor.optimizer.clip_norm": 2.0}),
        (
            (f"{ACTOR}.clip_ratio=0.1", f"{ACTOR}.clip_ratio_low=null", f"{ACTOR}.clip_ratio_high=0.3"),
            {"algorithm.clip_ratio_low": 0.1, "algorithm.clip_ratio_high": 0.3},
        ),
        ((f"{ROLLOUT}.top_k=-1", f"{ROLLOUT}.top_p=0.9"), {"rollout.top_k": 0, "rollout.top_p": 0.9}),
        (
            (f"+{ROLLOUT}.min_p=0.05", f"+{ROLLOUT}.min_tokens=4", f"+{ROLLOUT}.stop=['</a>','b']"),
            {
                "rollout.min_p": 0.05,
                "rollout.min_response_tokens": 4,
                "rollout.stop_strings": ("</a>", "b"),
            },
        ),
        (
            (f"+{ROLLOUT}.stop=x", f"+{ROLLOUT}.stop_token_ids=[3,4]"),
            {"rollout.stop_strings": ("x",), "rollout.stop_token_ids": (3, 4)},
        ),
        ((f"{ROLLOUT}.do_sample=False",), {"rollout.temperature": 0.0}),
        (
            (f"{ROLLOUT}.val_kwargs.do_sample=True", f"{ROLLOUT}.val_kwargs.temperature=0.6"),
            {"rollout.validation_temperature": 0.6},
        ),
        (
            (
                "algorithm.use_kl_in_reward=True",
                "algorithm.kl_penalty=low_var_kl",
                "algorithm.kl_ctrl.type=adaptive",
                "algorithm.kl_ctrl.target_kl=0.2",
            ),
            {
                "algorithm.kl.reward_coefficient": 0.001,
                "algorithm.kl.reward_estimator": "k3",
                "algorithm.kl.controller": "adaptive",
                "algorithm.kl.target": 0.2,
            },
        ),
        (
            (f"{ACTOR}.use_kl_loss=True", f"{ACTOR}.kl_loss_type=mse+"),
            {"algorithm.kl.loss_coefficient": 0.001, "algorithm.kl.loss_estimator": "k2+"},
        ),
        (
            ("algorithm.adv_estimator=rloo_vectorized",),
            {"algorithm.name": "grpo", "algorithm.estimator": "rloo"},
        ),
        (
            (
                "algorithm.adv_estimator=grpo",
                "algorithm.norm_adv_by_std_in_grpo=False",
                f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm",
            ),
            {"algorithm.normalize_by_std": False, "algorithm.loss_aggregation": "seq-mean-token-sum-norm"},
        ),
        (
            (f"{ACTOR}.policy_loss.loss_mode=gspo", f"{ACTOR}.clip_ratio_low=3e-4"),
            {
                "algorithm.objective": "gspo",
                "algorithm.gspo.clip_ratio_low": 3e-4,
                "algorithm.loss_aggregation": "seq-mean-token-mean",
            },
        ),
        (
            (f"{ACTOR}.policy_loss.loss_mode=cispo", f"{ACTOR}.clip_ratio_high=0.28"),
            {"algorithm.cispo.clip_ratio_high": 0.28, "algorithm.cispo.clip_ratio_low": 0.2},
        ),
        (
            (f"{ACTOR}.policy_loss.loss_mode=cispo", f"{ACTOR}.clip_ratio_low=10"),
            {"algorithm.cispo.clip_ratio_low": 1.0},
        ),
        (
            (f"{ACTOR}.policy_loss.loss_mode=dppo_tv",),
            {"algorithm.dppo.tv_bound": 0.2, "algorithm.dppo.ratio_bound": 3.0},
        ),
        ((f"{ACTOR}.policy_loss.loss_mode=kl_cov",), {"algorithm.kl_cov.coefficient": 0.1}),
        (
            (f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.rollout_is_threshold=2.0"),
            {"algorithm.off_policy.level": "token", "algorithm.off_policy.bounds": "truncate"},
        ),
        (
            (f"{CORRECTION}.rollout_is=sequence", f"{CORRECTION}.rollout_is_threshold=0.5_5.0"),
            {
                "algorithm.off_policy.level": "sequence",
                "algorithm.off_policy.bounds": "mask",
                "algorithm.off_policy.upper": 5.0,
            },
        ),
        (
            (f"{CORRECTION}.rollout_rs=seq_mean_k1", f"{CORRECTION}.rollout_rs_threshold=0.999_1.001"),
            {
                "algorithm.off_policy.rejection": "geometric",
                "algorithm.off_policy.rejection_lower": 0.999,
                "algorithm.off_policy.rejection_upper": 1.001,
            },
        ),
        (
            (f"{CORRECTION}.rollout_rs=token_k1", f"{CORRECTION}.rollout_rs_threshold=4.0"),
            {
                "algorithm.off_policy.rejection": "token",
                "algorithm.off_policy.rejection_lower": 0.25,
                "algorithm.off_policy.rejection_upper": 4.0,
            },
        ),
        ((f"{CORRECTION}.bypass_mode=True",), {"algorithm.off_policy.bypass": True}),
        (("algorithm.filter_groups.enable=True",), {"algorithm.dynamic_sampling.max_refills": 10}),
        (
            ("algorithm.use_pf_ppo=True", "algorithm.pf_ppo.weight_pow=3"),
            {"algorithm.reweighting.method": "pow", "algorithm.reweighting.power": 3.0},
        ),
        (("data.truncation=error",), {"data.overlong_prompts": "error"}),
        (
            (
                "custom_reward_function.path=/x/r.py",
                "custom_reward_function.name=score",
                "+custom_reward_function.reward_kwargs.a.b=1",
            ),
            {"reward.function": "/x/r.py:score", "reward.function_arguments": '{"a": {"b": 1}}'},
        ),
        (
            (
                "actor_rollout_ref.model.lora_rank=8",
                "actor_rollout_ref.model.target_modules=[q_proj,down_proj]",
            ),
            {"actor.lora.rank": 8, "actor.lora.alpha": 16.0, "actor.lora.targets": ("query", "down")},
        ),
        (
            (
                "model_engine=megatron",
                "critic.model.lora.rank=4",
                "critic.model.lora.alpha=8",
                "critic.model.lora.exclude_modules=[linear_fc1]",
                "critic.model.lora_rank=99",
            ),
            {
                "critic.lora.rank": 4,
                "critic.lora.alpha": 8.0,
                "critic.lora.targets": ("query", "key", "value", "output", "down"),
            },
        ),
        (
            ("reward_model.enable=True", "reward_model.model.path=/x/rm"),
            {"reward.kind": "model", "reward.weights": "/x/rm"},
        ),
        (
            (f"{ACTOR}.fsdp_config.dtype=float32", f"{ROLLOUT}.dtype=fp32"),
            {"actor.model.compute_dtype": "float32", "rollout.dtype": "float32"},
        ),
    ],
)
def test_units_and_conditions_are_converted(overrides, expected):
    values = written(*overrides)
    assert {key: values[key] for key in expected} == expected
    assert {type(values[key]) for key in expected} <= {type(value) for value in expected.values()} | {
        type(None)
    }


@pytest.mark.parametrize(
    ("overrides", "mesh"),
    [
        # data, fsdp, expert, pipe, tensor, generation_tensor
        ((), (1, 4, 1, 1, 2, 2)),
        ((f"{ROLLOUT}.tensor_model_parallel_size=1",), (1, 8, 1, 1, 1, 1)),
        (("trainer.nnodes=2", f"{ACTOR}.fsdp_config.fsdp_size=8"), (2, 4, 1, 1, 2, 2)),
        (
            (
                "model_engine=megatron",
                f"{ACTOR}.megatron.tensor_model_parallel_size=4",
                f"{ACTOR}.megatron.pipeline_model_parallel_size=2",
            ),
            (1, 1, 1, 2, 4, 2),
        ),
        (
            (
                "model_engine=megatron",
                "trainer.nnodes=4",
                f"{ACTOR}.megatron.tensor_model_parallel_size=2",
                f"{ACTOR}.megatron.expert_model_parallel_size=4",
                f"{ROLLOUT}.tensor_model_parallel_size=4",
            ),
            (1, 2, 4, 1, 4, 4),
        ),
        (
            (
                "model_engine=megatron",
                f"{ACTOR}.megatron.tensor_model_parallel_size=2",
                f"{ACTOR}.megatron.pipeline_model_parallel_size=2",
                f"{ROLLOUT}.tensor_model_parallel_size=8",
            ),
            (1, 1, 1, 2, 4, 4),  # the pipeline takes half of the rollout's ranks
        ),
        (
            (f"{ACTOR}.megatron.tensor_model_parallel_size=4",),
            (1, 4, 1, 1, 2, 2),
        ),  # not the engine of this run
    ],
)
def test_devices_are_cut_into_one_mesh(overrides, mesh):
    values = written(*overrides)
    axes = ("data", "fsdp", "expert", "pipe", "tensor", "generation_tensor")
    assert tuple(values[f"cluster.pools.main.mesh.{axis}"] for axis in axes) == mesh
    hosts, devices = (values[f"cluster.pools.main.{key}"] for key in ("hosts", "devices_per_host"))
    data, fsdp, expert, pipe, tensor, _ = mesh
    assert data * fsdp * expert * pipe * tensor == hosts * devices
    assert values["cluster.address"] == ("auto" if hosts > 1 else "")


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        ((), ("actor", "critic", "reward", "estimator")),
        (("algorithm.use_kl_in_reward=True",), ("actor", "critic", "reference", "reward", "estimator")),
        (("algorithm.adv_estimator=grpo",), ("actor", "reward", "estimator")),
        (
            ("algorithm.adv_estimator=rloo", f"{ACTOR}.use_kl_loss=True"),
            ("actor", "reference", "reward", "estimator"),
        ),
    ],
)
def test_a_critic_and_a_reference_are_placed_where_verl_has_them(overrides, roles):
    assert sorted(written(*overrides)["cluster.pools.main.roles"]) == sorted(roles)
