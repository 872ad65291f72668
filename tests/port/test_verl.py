"""What a run of verl's means, the ported run means: in jaxflow's keys and units, nothing dropped."""

import pytest
from port import material
from port.material import accepted, assigned, told, verl

from jaxflow.config import Config, flatten
from jaxflow.port.table import Dialect, Is, Key, Setting
from jaxflow.port.translate import translate
from jaxflow.port.verl import VERL
from jaxflow.port.verl.engines import INFERENCE
from jaxflow.types import UserError

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
CORRECTION = "algorithm.rollout_correction"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return material.make(tmp_path_factory.mktemp("verl"), training_rows=200)


# The published examples, from the facts of verl's documentation; sizes are a tenth of theirs.
COMMON = (
    "data.train_batch_size=64",
    "data.max_prompt_length=512",
    "data.max_response_length=1024",
    "data.filter_overlong_prompts=True",
    "data.truncation=error",
    "actor_rollout_ref.model.use_remove_padding=True",
    "actor_rollout_ref.model.enable_gradient_checkpointing=True",
    f"{ACTOR}.optim.lr=1e-6",
    f"{ACTOR}.ppo_mini_batch_size=16",
    f"{ACTOR}.fsdp_config.param_offload=False",
    f"{ACTOR}.fsdp_config.optimizer_offload=False",
    f"{ROLLOUT}.name=vllm",
    f"{ROLLOUT}.tensor_model_parallel_size=2",
    f"{ROLLOUT}.gpu_memory_utilization=0.6",
    "trainer.critic_warmup=0",
    'trainer.logger=["console","wandb"]',
    "trainer.project_name=examples",
    "trainer.n_gpus_per_node=8",
    "trainer.nnodes=1",
    "trainer.save_freq=20",
    "trainer.test_freq=5",
    "trainer.total_epochs=15",
)
GSM8K_PPO = (
    "algorithm.adv_estimator=gae",
    f"{ACTOR}.ppo_micro_batch_size_per_gpu=4",
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.ref.fsdp_config.param_offload=True",
    "critic.optim.lr=1e-5",
    "critic.model.use_remove_padding=True",
    "critic.ppo_micro_batch_size_per_gpu=4",
    "algorithm.kl_ctrl.kl_coef=0.001",
)
GSM8K_GRPO = (
    "algorithm.adv_estimator=grpo",
    f"{ROLLOUT}.n=5",
    f"{ACTOR}.use_kl_loss=True",
    f"{ACTOR}.kl_loss_coef=0.001",
    f"{ACTOR}.kl_loss_type=low_var_kl",
    f"{ACTOR}.entropy_coeff=0",
    f"{ACTOR}.use_dynamic_bsz=True",
    f"{ACTOR}.ppo_max_token_len_per_gpu=24576",
    "algorithm.use_kl_in_reward=False",
)
REMAX = (
    "algorithm.adv_estimator=remax",
    "algorithm.use_kl_in_reward=True",
    "algorithm.kl_penalty=kl",
    "algorithm.kl_ctrl.kl_coef=0.001",
    f"{ROLLOUT}.n=4",
    f"{ACTOR}.use_kl_loss=False",
    f"{ACTOR}.use_dynamic_bsz=True",
)
DAPO = (
    "algorithm.adv_estimator=grpo",
    "algorithm.use_kl_in_reward=False",
    "algorithm.kl_ctrl.kl_coef=0.0",
    f"{ACTOR}.use_kl_loss=False",
    f"{ACTOR}.kl_loss_coef=0.0",
    f"{ACTOR}.clip_ratio_low=0.2",
    f"{ACTOR}.clip_ratio_high=0.28",
    f"{ACTOR}.clip_ratio_c=10.0",
    f"{ACTOR}.loss_agg_mode=token-mean",
    f"{ACTOR}.optim.lr_warmup_steps=10",
    f"{ACTOR}.optim.weight_decay=0.1",
    f"{ACTOR}.grad_clip=1.0",
    f"{ACTOR}.use_dynamic_bsz=True",
    f"{ROLLOUT}.n=16",
    f"{ROLLOUT}.temperature=1.0",
    f"{ROLLOUT}.top_p=1.0",
    f"{ROLLOUT}.top_k=-1",
    "data.gen_batch_size=192",
    "algorithm.filter_groups.enable=True",
    "algorithm.filter_groups.metric=acc",
    "algorithm.filter_groups.max_num_gen_batches=10",
    "reward_model.reward_manager=dapo",
    "reward_model.overlong_buffer.enable=True",
    "reward_model.overlong_buffer.len=256",
    "reward_model.overlong_buffer.penalty_factor=1.0",
)
EXAMPLES = {"ppo": GSM8K_PPO, "grpo": GSM8K_GRPO, "remax": REMAX, "dapo": DAPO}


def example(name, files):
    own = (
        f"data.train_files={files.train}",
        f"data.val_files=[{files.validation}]",
        f"actor_rollout_ref.model.path={files.model}",
    )
    return verl(*COMMON, *EXAMPLES[name], *own, rows=None)


def test_every_key_of_jaxflow_s_in_the_table_is_in_its_schema_and_no_setting_twice():
    known = {*flatten(Config()), "--workdir"}
    keys = [setting.key for setting in VERL.settings]
    assert [key for key in keys if key not in known] == []
    assert len(keys) == len(set(keys))
    names = [key.name for key in VERL.keys]
    assert len(names) == len(set(names))


def test_every_key_without_a_setting_says_why():
    silent = [key.name for key in VERL.keys if not (key.why or key.judge or VERL.settings_of(key.name))]
    assert silent == []


def test_a_table_whose_settings_read_unknown_keys_is_refused():
    setting = Setting("run.seed", ("a", "b"), "", lambda values: Is(0))
    with pytest.raises(ValueError, match="lacks: b"):
        Dialect("x", (Key("a"),), (setting,))


@pytest.mark.parametrize("name", EXAMPLES)
def test_published_examples_become_configs_that_a_run_accepts(name, files, tmp_path):
    translation = example(name, files)
    config = accepted(translation, tmp_path)
    unsupported = [line.key for line in translation.lines_of("unsupported")]
    assert unsupported == ["trainer.logger"] and translation.open_ends == ()
    # 15 epochs of ⌊200 rows / 64 prompts⌋ steps.
    assert config.run.total_steps == 45
    samples = {"ppo": 1, "grpo": 5, "remax": 4, "dapo": 16}[name]
    assert (config.data.prompts_per_step, config.rollout.samples_per_prompt) == (64, samples)
    assert config.actor.minibatch_sequences == 16 * samples
    pool = config.cluster.pools["main"]
    assert (pool.hosts, pool.devices_per_host, pool.mesh.fsdp, pool.mesh.tensor) == (1, 8, 4, 2)
    assert (config.checkpoint.every_steps, config.run.evaluate_every_steps) == (20, 5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_key_of_the_input_is_told_of_once(name, files):
    translation = example(name, files)
    given = {text.split("=")[0] for text in (*COMMON, *EXAMPLES[name])}
    keys = [line.key for line in translation.lines]
    assert len(keys) == len(set(keys))
    assert given <= set(keys) and len(keys) == len(given) + 3
    assert all(line.texts and all(line.texts) for line in translation.lines)


def test_the_examples_keep_their_rule_of_learning(files, tmp_path):
    ppo = accepted(example("ppo", files), tmp_path)
    assert (ppo.algorithm.name, ppo.algorithm.kl.reward_coefficient) == (
        "ppo",
        0.0,
    )  # use_kl_in_reward is false
    assert ppo.critic.optimizer.learning_rate == 1e-5 and ppo.critic.weights == ""
    assert ppo.actor.microbatch_tokens_per_device == 4 * 1536
    assert ppo.rollout.score_microbatch_tokens_per_device == 4 * 1536  # the smaller of rollout and reference
    grpo = accepted(example("grpo", files), tmp_path)
    assert (grpo.algorithm.estimator, grpo.algorithm.kl.loss_coefficient) == ("grpo", 0.001)
    assert grpo.algorithm.kl.loss_estimator == "k3" and grpo.actor.microbatch_tokens_per_device == 24576
    remax = accepted(example("remax", files), tmp_path)
    assert (remax.algorithm.name, remax.algorithm.kl.reward_coefficient) == ("remax", 0.001)
    assert remax.actor.microbatch_tokens_per_device == 16384  # verl's default budget
    dapo = accepted(example("dapo", files), tmp_path)
    rule = dapo.algorithm
    assert (rule.clip_ratio_low, rule.clip_ratio_high, rule.dual_clip) == (0.2, 0.28, 10.0)
    assert (rule.dynamic_sampling.max_refills, rule.dynamic_sampling.metric) == (9, "accuracy")
    assert dapo.actor.optimizer.warmup_updates == 10 * 4  # verl counts steps, of 64 / 16 updates each
    assert (dapo.reward.manager, dapo.reward.overlong_buffer_tokens) == ("dapo", 256)


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("trainer.logger=wandb", "does not write to wandb"),
        (f"{ROLLOUT}.multi_turn.enable=True", "one turn"),
        ("data.truncation=left", "does not cut prompts"),
        ("algorithm.adv_estimator=optimal_token_baseline", "has no 'optimal_token_baseline'"),
        (f"{ACTOR}.policy_loss.loss_mode=dro", "no objective 'dro'"),
        (f"{ACTOR}.ulysses_sequence_parallel_size=2", "does not cut sequences"),
        (f"{ACTOR}.optim.optimizer=Muon", "retune"),
        (f"{CORRECTION}.rollout_rs=seq_max_k3", "k1 form"),
        ("trainer.device=npu", "no 'npu'"),
        (f"{ACTOR}.kl_loss_type=full", ""),
        ("critic.enable=False", "leave it out"),
        ("actor_rollout_ref.model.path=null", "no model is named"),
        ("actor_rollout_ref.model.path=", "no model is named"),
        ("trainer.v1.trainer_mode=separate_async", "synchronous"),
        (f"{ROLLOUT}.dtype=float16", "bfloat16 or float32"),
        (f"{ACTOR}.fsdp_config.param_offload=True", "trained role (actor)"),
        ("critic.fsdp.param_offload=True", "add 'critic' to cluster.pools.main.offload"),
        (f"{ACTOR}.fsdp_config.optimizer_offload=some", "say true or false"),
    ],
)
def test_what_jaxflow_cannot_do_is_said_with_what_to_do_instead(override, why):
    extra = (f"{ACTOR}.use_kl_loss=True",) if "kl_loss_type" in override else ()
    status, text = told(verl(override, *extra))[override.split("=")[0]]
    assert status == "unsupported" and why in text


OFFLOADED = (
    f"{ACTOR}.fsdp_config.optimizer_offload=True",
    "critic.model.fsdp_config.optimizer_offload=True",
    "actor_rollout_ref.ref.fsdp_config.param_offload=True",
    "reward_model.model.fsdp_config.param_offload=True",
)


@pytest.mark.parametrize(
    ("overrides", "waiting"),
    [
        ((), ("actor", "critic")),
        ((f"{ACTOR}.use_kl_loss=True",), ("actor", "critic", "reference")),
        (("algorithm.adv_estimator=grpo", f"{ROLLOUT}.n=2"), ("actor",)),
        (("reward_model.enable=True", "reward_model.model.path=JUDGE"), ("actor", "critic", "reward")),
        (
            ("model_engine=megatron", "critic.megatron.optimizer_offload=True", f"{ACTOR}.use_kl_loss=True"),
            ("critic",),  # the other flags are FSDP's
        ),
    ],
)
def test_roles_that_wait_in_host_memory_are_those_that_the_run_has(overrides, waiting, files, tmp_path):
    own = [text.replace("JUDGE", files.judge) for text in overrides]
    model = f"actor_rollout_ref.model.path={files.model}"
    small = (f"{ACTOR}.ppo_micro_batch_size_per_gpu=4", f"data.train_files={files.train}", model)
    translation = verl(*COMMON[:1], *small, f"{ACTOR}.ppo_mini_batch_size=16", *OFFLOADED, *own)
    assert accepted(translation, tmp_path).cluster.pools["main"].offload == waiting
    lines = told(translation)
    asked = {key: lines[key][0] for key in lines if key.endswith("_offload")}
    assert sum(status == "translated" for status in asked.values()) == len(waiting)
    assert "unsupported" not in asked.values() and len(asked) >= len(OFFLOADED)


def test_a_mesh_that_cannot_be_is_left_to_the_user_with_the_reason():
    translation = verl(
        "model_engine=megatron", f"{ACTOR}.megatron.tensor_model_parallel_size=3", "trainer.n_gpus_per_node=8"
    )
    status, text = told(translation)[f"{ACTOR}.megatron.tensor_model_parallel_size"]
    assert status == "unsupported" and "8 devices are no multiple" in text


def test_a_clip_ratio_that_verl_does_not_read_changes_nothing_and_says_so():
    translation = verl(f"{ACTOR}.clip_ratio=0.1")
    status, text = told(translation)[f"{ACTOR}.clip_ratio"]
    assert status == "defaulted" and "clip_ratio_low and clip_ratio_high" in text
    assert assigned(translation).get("algorithm.clip_ratio_low", 0.2) == 0.2


def test_gspo_without_widths_of_its_own_keeps_the_paper_s():
    translation = verl(f"{ACTOR}.policy_loss.loss_mode=gspo")
    assert not {"algorithm.gspo.clip_ratio_low", "algorithm.gspo.clip_ratio_high"} & set(
        assigned(translation)
    )


def test_keys_that_differ_only_inside_verl_are_defaulted():
    overrides = [f"{ROLLOUT}.{name}=x" for name in INFERENCE if "*" not in name]
    translation = verl(*overrides, f"+{ROLLOUT}.engine_kwargs.vllm.anything.below=1")
    assert {line.status for line in translation.lines} == {"defaulted"}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (f"{ACTOR}.optim.learning_rate", "no such key"),
        (f"{ACTOR}.ppo_minibatch_size", f"nearest: {ACTOR}.ppo_mini_batch_size"),
        ("algorithm.adv_estimtor", "nearest: algorithm.adv_estimator"),
        ("trainer.total_epoch", "nearest: trainer.total_epochs"),
        (f"{ROLLOUT}.temprature", f"nearest: {ROLLOUT}.temperature"),
    ],
)
def test_keys_that_verl_lacks_are_refused_with_the_nearest(wrong, right):
    with pytest.raises(UserError, match="the verl config has 2 mistakes") as caught:
        verl(f"{wrong}=1", "data.seeed=3")
    assert f"{wrong}: no such key" in str(caught.value) and right in str(caught.value)
    assert "nearest: data.seed" in str(caught.value)


def test_older_spellings_are_today_s_keys_and_may_not_contradict_them():
    translation = verl(
        "reward_model.reward_manager=batch",
        "reward.reward_manager.name=batch",
        "reward_model.enable=null",
        "critic.model.fsdp_config.param_offload=True",
    )
    assert assigned(translation)["reward.manager"] == "batch"
    assert len(translation.lines) == 4
    with pytest.raises(UserError, match="by another name"):
        verl("reward_model.reward_manager=dapo", "reward.reward_manager.name=batch")


def test_a_key_that_is_taken_away_is_told_of_and_has_its_default():
    translation = verl("~trainer.logger", "trainer.test_freq=5")
    assert told(translation)["trainer.logger"] == ("defaulted", "taken away by ~")


def test_an_unknown_number_of_rows_is_asked_for_and_refused_by_the_run():
    translation = verl("trainer.total_epochs=15", f"{ACTOR}.optim.lr_warmup_steps_ratio=0.1", rows=None)
    assert told(translation)["trainer.total_epochs"][0] == "unsupported"
    assert "--rows=N" in told(translation)["trainer.total_epochs"][1]
    assert assigned(translation)["run.total_steps"] == 0
    assert any("run.total_steps" in text for text in verl("data.shuffle=True", rows=None).open_ends)


def test_values_of_the_wrong_kind_are_unsupported_not_written():
    translation = verl("trainer.n_gpus_per_node=many", f"{ACTOR}.optim.lr=fast", f"{ACTOR}.ppo_epochs=[1]")
    assert {line.status for line in translation.lines} == {"unsupported"}
    assert not {"actor.optimizer.learning_rate", "actor.update_epochs"} & set(assigned(translation))


def test_verl_s_own_defaults_are_the_whole_input_of_an_empty_config():
    translation = translate(VERL, {}, (), 1024)
    values = {**flatten(Config()), **assigned(translation)}
    assert (values["algorithm.dual_clip"], values["algorithm.value_clip"]) == (3.0, 0.5)
    assert (values["actor.optimizer.learning_rate"], values["critic.optimizer.learning_rate"]) == (1e-6, 1e-5)
    assert (values["actor.optimizer.weight_decay"], values["actor.optimizer.clip_norm"]) == (0.01, 1.0)
    assert (values["data.prompts_per_step"], values["actor.minibatch_sequences"]) == (1024, 256)
    assert values["algorithm.kl.reward_coefficient"] == 0.0 == values["algorithm.kl.loss_coefficient"]
    assert values["run.total_steps"] == 30
