"""What a run of TRL's means, the ported run means: completions and updates into prompts, sequences and steps."""

import pytest
from port import material
from port.material import accepted, assigned, told, trl

from jaxflow.config import Config, flatten
from jaxflow.port import inputs
from jaxflow.port.translate import translate
from jaxflow.port.trl import TRL_GRPO, TRL_PPO
from jaxflow.types import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return material.make(tmp_path_factory.mktemp("trl"), training_rows=200)


def written(trainer, *flags, rows=1000):
    return {**flatten(Config()), **assigned(trl(trainer, *flags, rows=rows))}


@pytest.mark.parametrize("dialect", [TRL_GRPO, TRL_PPO], ids=lambda dialect: dialect.name)
def test_every_key_of_jaxflow_s_in_the_tables_is_in_its_schema_and_no_setting_twice(dialect):
    keys = [setting.key for setting in dialect.settings]
    assert [key for key in keys if key not in {*flatten(Config()), "--workdir"}] == []
    assert len(keys) == len(set(keys))
    silent = [key.name for key in dialect.keys if not (key.why or key.judge or dialect.settings_of(key.name))]
    assert silent == []
    names = [key.name for key in dialect.keys]
    assert len(names) == len(set(names))


def test_a_grpo_run_becomes_a_config_that_a_run_accepts(files, tmp_path):
    arguments = tmp_path / "args.yaml"
    arguments.write_text(
        f"model_name_or_path: {files.model}\ndataset_name: {files.train}\nlearning_rate: 1e-5\nbeta: 0.04\n"
        "per_device_train_batch_size: 4\ngradient_accumulation_steps: 2\nnum_generations: 8\nepsilon_high: 0.28\n"
        "max_completion_length: 256\nloss_type: dr_grpo\nscale_rewards: false\nnum_iterations: 2\n"
        "num_train_epochs: 1\nwarmup_steps: 10\nsave_steps: 20\nlogging_steps: 1\n"
    )
    request = inputs.of_trl(
        ["grpo", str(arguments), "--num_processes", "4", "--temperature=0.9"], None, None, {}
    )
    translation = translate(request.dialect, request.values, request.removed, request.rows)
    config = accepted(translation, tmp_path)
    assert [line.status for line in translation.lines].count("unsupported") == 0
    assert len(translation.lines) == 18
    # 4 × 2 × 4 completions an update, in groups of 8; one epoch is ⌊200 / 4⌋ rounds.
    assert (config.data.prompts_per_step, config.actor.minibatch_sequences) == (4, 32)
    assert (config.run.total_steps, config.actor.update_epochs) == (50, 2)
    assert (config.actor.optimizer.warmup_updates, config.checkpoint.every_steps) == (10, 10)
    assert (config.algorithm.clip_ratio_low, config.algorithm.clip_ratio_high) == (0.2, 0.28)
    assert config.algorithm.loss_aggregation == "seq-mean-token-sum-norm"
    assert not config.algorithm.normalize_by_std and config.algorithm.dual_clip == 0.0
    assert (config.algorithm.kl.loss_coefficient, config.algorithm.kl.reward_coefficient) == (0.04, 0.0)
    assert config.rollout.temperature == 0.9
    # 4 rows of 512 + 256 tokens, padded to 768.
    assert config.actor.microbatch_tokens_per_device == 4 * 768
    assert config.actor.optimizer.schedule == "linear" and config.actor.optimizer.weight_decay == 0.0


def test_a_ppo_command_becomes_a_config_that_a_run_accepts(files, tmp_path):
    command = (
        "accelerate launch --num_processes 4 examples/scripts/ppo/ppo_tldr.py \\\n"
        f"  --dataset_name {files.train} --model_name_or_path {files.model} --sft_model_path {files.model} \\\n"
        f"  --reward_model_path {files.judge} --per_device_train_batch_size 16 --gradient_accumulation_steps 2 \\\n"
        "  --total_episodes 1000 --stop_token eos --eval_strategy steps --eval_steps 4"
    )
    request = inputs.of_trl(["ppo"], command, None, {})
    translation = translate(request.dialect, request.values, request.removed, request.rows)
    config = accepted(translation, tmp_path)
    # A batch is 16 × 2 × 4 episodes, and one update of each of 4 epochs.
    assert (config.data.prompts_per_step, config.rollout.samples_per_prompt) == (128, 1)
    assert (config.actor.minibatch_sequences, config.critic.minibatch_sequences) == (128, 128)
    assert (config.run.total_steps, config.actor.update_epochs) == (8, 4)
    assert (config.reward.kind, config.reward.weights, config.critic.weights) == (
        "model",
        files.judge,
        files.judge,
    )
    rule = config.algorithm
    assert (rule.name, rule.gae_lambda, rule.value_clip, rule.dual_clip) == ("ppo", 0.95, 0.2, 0.0)
    assert (rule.kl.reward_coefficient, config.rollout.temperature) == (0.05, 0.7)
    assert config.actor.optimizer.learning_rate == 3e-6 == config.critic.optimizer.learning_rate
    assert config.run.evaluate_every_steps == 4  # its steps are batches, whatever the epochs over them


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ("--generation_batch_size", "256", "--per_device_train_batch_size", "8", "--num_processes", "4"),
            {"data.prompts_per_step": 32, "actor.minibatch_sequences": 32},
        ),
        (
            ("--steps_per_generation", "8", "--gradient_accumulation_steps", "2"),
            {"data.prompts_per_step": 8, "actor.minibatch_sequences": 16},
        ),
        (
            ("--max_steps", "100", "--steps_per_generation", "4", "--num_iterations", "2"),
            {"run.total_steps": 12},  # a round makes 4 × 2 updates
        ),
        (
            ("--save_steps", "8", "--steps_per_generation", "4", "--num_iterations", "1"),
            {"checkpoint.every_steps": 2},
        ),
        (("--save_steps", "0.25", "--max_steps", "40"), {"checkpoint.every_steps": 10}),
        (("--save_strategy", "epoch", "--num_processes", "8"), {"checkpoint.every_steps": 125}),
        (("--warmup_ratio", "0.1", "--max_steps", "50"), {"actor.optimizer.warmup_updates": 5}),
        (("--loss_type", "grpo"), {"algorithm.loss_aggregation": "seq-mean-token-mean"}),
        (("--loss_type", "bnpo"), {"algorithm.loss_aggregation": "token-mean"}),
        (
            ("--loss_type", "cispo", "--epsilon_high", "5.0"),
            {
                "algorithm.objective": "cispo",
                "algorithm.cispo.clip_ratio_high": 4.0,
                "algorithm.cispo.clip_ratio_low": 1.0,
            },
        ),
        (
            ("--loss_type", "sapo", "--sapo_temperature_neg", "1.2"),
            {"algorithm.objective": "sapo", "algorithm.sapo.temperature_negative": 1.2},
        ),
        (
            ("--importance_sampling_level", "sequence", "--loss_type", "grpo", "--epsilon", "3e-4"),
            {
                "algorithm.objective": "gspo",
                "algorithm.gspo.clip_ratio_low": 3e-4,
                "algorithm.gspo.clip_ratio_high": 3e-4,
            },
        ),
        (("--delta", "4"), {"algorithm.dual_clip": 4.0}),
        (("--no_such", "1"), None),
        (
            (
                "--use_vllm",
                "--vllm_tensor_parallel_size",
                "2",
                "--num_processes",
                "8",
                "--deepspeed",
                "z3.json",
            ),
            {
                "cluster.pools.main.mesh.tensor": 2,
                "cluster.pools.main.mesh.generation_tensor": 2,
                "cluster.pools.main.mesh.fsdp": 4,
                "cluster.pools.main.mesh.data": 1,
                "algorithm.off_policy.level": "sequence",
                "algorithm.off_policy.bounds": "mask",
                "algorithm.off_policy.upper": 3.0,
            },
        ),
        (
            (
                "--use_vllm",
                "true",
                "--vllm_importance_sampling_mode",
                "token_truncate",
                "--vllm_importance_sampling_cap",
                "2",
            ),
            {
                "algorithm.off_policy.level": "token",
                "algorithm.off_policy.bounds": "truncate",
                "algorithm.off_policy.upper": 2.0,
            },
        ),
        (("--top_k", "50", "--top_p", "0.9"), {"rollout.top_k": 50, "rollout.top_p": 0.9}),
        (("--min_p", "0.1"), {"rollout.min_p": 0.1}),
        (("--multi_objective_aggregation", "normalize_then_sum"), {"algorithm.estimator": "gdpo"}),
        (
            ("--use_peft", "--lora_r", "32", "--lora_target_modules", "all-linear"),
            {"actor.lora.rank": 32, "actor.lora.alpha": 32.0},
        ),
        (("--report_to", "tensorboard"), {"tracking.tensorboard": True}),
        (("--bf16", "false"), {"actor.model.compute_dtype": "float32", "rollout.dtype": "float32"}),
        (
            ("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", "{min_lr: 1e-7}"),
            {"actor.optimizer.schedule": "cosine", "actor.optimizer.final_fraction": 0.1},
        ),
        (
            ("--num_processes", "16", "--num_machines", "2"),
            {
                "cluster.pools.main.hosts": 2,
                "cluster.pools.main.devices_per_host": 8,
                "cluster.address": "auto",
            },
        ),
    ],
)
def test_units_and_conditions_of_grpo_are_converted(flags, expected):
    if expected is None:
        with pytest.raises(UserError, match="no_such: no such key"):
            trl("grpo", *flags)
        return
    values = written("grpo", *flags)
    assert {key: pytest.approx(values[key]) for key in expected} == expected


@pytest.mark.parametrize(
    ("trainer", "flags", "why"),
    [
        ("grpo", ("--dataset_name", "trl-lib/tldr"), "reads local files"),
        ("grpo", ("--reward_funcs", "my.rewards.f"), "compute_score"),
        ("grpo", ("--loss_type", "vespo"), "no loss_type 'vespo'"),
        ("grpo", ("--scale_rewards", "batch"), "the group's deviation"),
        ("grpo", ("--mask_truncated_completions",), "does not have it"),
        ("grpo", ("--push_to_hub",), "uploads nothing"),
        ("grpo", ("--fp16",), "no float16"),
        ("grpo", ("--gradient_accumulation_steps", "8", "--steps_per_generation", "2"), "whole updates"),
        ("ppo", ("--missing_eos_penalty", "1.0"), "reward function"),
        ("ppo", ("--whiten_rewards",), "does not have it"),
        ("ppo", ("--batch_size", "64"), "leave it out"),
    ],
)
def test_what_jaxflow_cannot_do_is_said_with_what_to_do_instead(trainer, flags, why):
    status, text = told(trl(trainer, *flags))[flags[0].removeprefix("--")]
    assert status == "unsupported" and why in text


def test_adapters_of_trl_are_those_of_peft():
    assert written("grpo", "--lora_r", "4")["actor.lora.rank"] == 0
    translation = trl("grpo", "--use_peft", "--lora_dropout", "0.1")
    assert assigned(translation)["actor.lora.targets"] == ("query", "value")
    assert told(translation)["lora_dropout"][0] == "unsupported"


def test_warm_up_of_ppo_counts_batches():
    assert written("ppo", "--warmup_steps", "3")["actor.optimizer.warmup_updates"] == 3 * 4


def test_mini_batches_of_ppo_are_what_trl_makes_of_them():
    translation = trl("ppo", "--num_mini_batches", "4", "--gradient_accumulation_steps", "4")
    status, text = told(translation)["num_mini_batches"]
    assert status == "defaulted" and "the whole batch" in text
    assert assigned(translation)["actor.minibatch_sequences"] == 32


@pytest.mark.parametrize(
    ("flags", "steps"), [((), 0), (("--max_steps", "7"), 7), (("--num_train_epochs", "2"), 0)]
)
def test_an_unknown_number_of_rows_is_asked_for(flags, steps):
    assert written("grpo", *flags, rows=None)["run.total_steps"] == steps
