"""Contradictions are found, all at once, each with the way to mend it."""

import json

import pytest
from good_config import GOOD, ROLES, config, problems, split_config

from jaxflow.checks import check
from jaxflow.config import Config


def test_the_defaults_contradict_nothing():
    check(Config(), None, None)


def test_the_good_config_passes():
    check(config(), 100, 8)


def test_micro_batches_of_a_critic_that_no_pool_has_are_of_any_size():
    roles = [role for role in ROLES if role != "critic"]
    changes = {"algorithm__name": "grpo", "cluster__pools__main__roles": roles}
    check(config(critic__microbatch_tokens_per_device=1, **changes), 100, 8)


def test_a_config_on_two_pools_passes():
    check(split_config(), 100, 11)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"actor__model__heads": 6, "actor__model__kv_heads": 4}, "does not divide actor.model.heads = 6"),
        ({"actor__model__head_width": 31}, "make it even"),
        ({"actor__model__vocabulary_size": 99}, "but the tokenizer has 100 tokens"),
        ({"actor__microbatch_tokens_per_device": 31}, "set it to at least 32"),
        ({"critic__microbatch_tokens_per_device": 1}, "critic.microbatch_tokens_per_device = 1 cannot hold"),
        (
            {"rollout__score_microbatch_tokens_per_device": 8},
            "rollout.score_microbatch_tokens_per_device = 8",
        ),
        ({"cluster__pools__main__hosts": 0}, "cluster.pools.main.hosts = 0: must be at least 1"),
        ({"cluster__pools__main__mesh__fsdp": 0}, "cluster.pools.main.mesh.fsdp = 0: must be at least 1"),
        ({"cluster__stage_timeout_seconds": 0}, "cluster.stage_timeout_seconds = 0.0: must be above 0"),
        (
            {"cluster__heartbeat_timeout_seconds": -1},
            "cluster.heartbeat_timeout_seconds = -1.0: must be above",
        ),
        ({"cluster__max_restarts": -1}, "cluster.max_restarts = -1: must be at least 0"),
        ({"cluster__address": "head"}, "cluster.address = 'head': must be empty, auto or host:port"),
        ({"cluster__address": "ray://head:10001"}, "must be empty, auto or host:port"),
        (
            {"cluster__address": "auto", "cluster__launcher": "inprocess"},
            "starts no workers elsewhere; set the address to ''",
        ),
        ({"rollout__parts": 0}, "rollout.parts = 0: must be at least 1"),
        ({"tracking__timeline_steps": -1}, "tracking.timeline_steps = -1: must be at least 0"),
        ({"reward__kind": "models"}, "did you mean 'model'?"),
        (
            {"reward__kind": "model"},
            "set reward.weights to their directory, or warm_start.reward_steps above 0",
        ),
        ({"reward__weights": "/tmp"}, "reward.weights is of a reward model, and reward.kind = 'function'"),
        ({"reward__model__layers": 1}, "reward.model is of a reward model"),
        ({"warm_start__reward_steps": 1}, "warm_start.reward_steps is of a reward model"),
        (
            {"reward__kind": "model", "warm_start__reward_steps": 1, "reward__weights": "/tmp"},
            "reward.weights are given and would not be learnt",
        ),
        ({"reward__kind": "model", "reward__weights": "/nowhere"}, "reward.weights: no such directory"),
        (
            {"reward__kind": "model", "warm_start__reward_steps": 1, "reward__model__heads": 3},
            "reward.model.kv_heads = 4 does not divide reward.model.heads = 3",
        ),
        ({"rollout__temperature": -0.1}, "rollout.temperature = -0.1: must be at least 0"),
        ({"rollout__top_p": 0.0}, "rollout.top_p = 0.0: must be in (0, 1]"),
        ({"rollout__top_p": 1.01}, "rollout.top_p = 1.01: must be in (0, 1]"),
        ({"rollout__min_p": 1.0}, "rollout.min_p = 1.0: must be in [0, 1)"),
        ({"rollout__min_response_tokens": -1}, "rollout.min_response_tokens = -1: must be at least 0"),
        ({"rollout__min_response_tokens": 4096}, "leaves no token of rollout.max_response_tokens"),
        ({"rollout__stop_token_ids": (3, 100)}, "there is no token 100: the tokenizer's ids are 0 to 99"),
        ({"rollout__stop_strings": ("a", "")}, "an empty string ends every response"),
        ({"rollout__stop_strings": ("é" * 513,)}, "have 1026 bytes"),
        ({"rollout__stop_strings": ("\ufffd",)}, "U+FFFD stands for bytes that are no character"),
        ({"data__seed_key": "seed"}, "names a column of data.train_files, and there are none"),
        ({"algorithm__clip_ratio_low": 1.0}, "algorithm.clip_ratio_low = 1.0: must be in [0, 1)"),
        ({"algorithm__clip_ratio_high": -0.2}, "algorithm.clip_ratio_high = -0.2: must be at least 0"),
        ({"algorithm__dual_clip": 1.0}, "must be above 1, or 0 to switch it off"),
        ({"actor__optimizer__beta2": 1.0}, "actor.optimizer.beta2 = 1.0: must be in [0, 1)"),
        ({"run__total_steps": 0}, "run.total_steps = 0: must be at least 1"),
        ({"rollout__samples_per_prompt": 0}, "rollout.samples_per_prompt = 0: must be at least 1"),
        ({"algorithm__name": "pppo"}, "algorithm.name = 'pppo': did you mean 'ppo'?"),
        ({"algorithm__loss_aggregation": "token_mean"}, "did you mean 'token-mean'?"),
        ({"algorithm__kl__loss_estimator": "k4"}, "it is one of: k1, k2, k3, abs, k1+, k2+, k3+, abs+, full"),
        ({"actor__optimizer__schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"cluster__launcher": "slurm"}, "it is one of: ray, inprocess"),
        ({"cluster__platform": "gpus"}, "did you mean 'gpu'?"),
        ({"rollout__dtype": "bf16"}, "it is one of: float32, bfloat16"),
        ({"data__task": "additions"}, "did you mean 'addition'?"),
        ({"data__max_prompt_tokens": 5}, "the task addition needs 6; set it to at least 6"),
        ({"rollout__max_response_tokens": 3}, "the task addition needs 4; set it to at least 4"),
        ({"data__tokenizer": "/tmp"}, "a built-in task has its own tokenizer"),
        ({"algorithm__kl__controller": "adaptive", "algorithm__kl__reward_coefficient": 0.0}, "would stay 0"),
        ({"actor__weights": "/nowhere"}, "actor.weights: no such directory: /nowhere"),
        ({"reward__function": "rewards.py"}, "expected path.py:function"),
        ({"reward__function": "/nowhere.py:score"}, "reward.function: no such file: /nowhere.py"),
        ({"reward__manager": "dap"}, "did you mean 'dapo'?"),
        ({"reward__manager": "batch"}, "reward.manager = 'batch' calls reward.function with lists"),
        ({"reward__manager": "dapo"}, "needs it between 1 and rollout.max_response_tokens"),
        ({"reward__manager": "dapo", "reward__overlong_buffer_tokens": 10**6}, "needs it between 1 and"),
        ({"reward__overlong_buffer_tokens": 2}, "is of reward.manager = 'dapo', and it is 'naive'"),
        ({"reward__scorer": "gsm8"}, "did you mean 'gsm8k'?"),
        ({"reward__scorer": "gsm8k", "reward__function": "/nowhere.py:score"}, "are both set"),
        ({"reward__function_arguments": "{"}, "reward.function_arguments is not JSON"),
        ({"reward__function_arguments": "[1]"}, "must be a JSON object"),
        ({"reward__function_arguments": "{}"}, "without reward.function"),
        ({"reward__timeout_seconds": 0.0}, "reward.timeout_seconds = 0.0: must be above 0"),
        ({"reward__processes": 0}, "reward.processes = 0: must be at least 1"),
        (
            {"data__validation_files": ["/nowhere.jsonl"], "data__train_files": []},
            "no such file: /nowhere.jsonl",
        ),
    ],
)
def test_each_contradiction_is_named_with_its_mend(changes, expected):
    assert any(expected in problem for problem in problems(config(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint__every_steps": 0, "checkpoint__every_minutes": 0},
        {"rollout__temperature": 0},
        {"algorithm__dual_clip": 0},
        {"actor__model__vocabulary_size": 130},
        {"actor__optimizer__schedule": "linear", "actor__optimizer__warmup_updates": 1000},
        {"actor__optimizer__schedule": "constant", "actor__optimizer__warmup_updates": 1000},
        {"actor__microbatch_tokens_per_device": 32},
        {"warm_start__steps": 0, "warm_start__sequences_per_step": 7},
    ],
)
def test_legal_edges_pass(changes):
    check(config(**changes), 100, 8)


def test_padding_counts_where_the_longest_sequence_must_fit():
    # 12 + 21 = 33 tokens are padded to 48.
    bad = config(rollout__max_response_tokens=21, actor__microbatch_tokens_per_device=47)
    assert problems(bad)[0].endswith("= 33, 48 when padded; set it to at least 48")
    check(config(rollout__max_response_tokens=21, actor__microbatch_tokens_per_device=48), 100, 8)


@pytest.mark.parametrize(
    ("key", "weights", "reward_steps", "needed"),
    [
        ("rollout__score_microbatch_tokens_per_device", "/tmp", 0, 48),
        ("rollout__score_microbatch_tokens_per_device", "", 5, 48),
        ("actor__microbatch_tokens_per_device", "", 5, 48),
        ("actor__microbatch_tokens_per_device", "/tmp", 0, 32),
    ],
)
def test_a_reward_model_reads_past_the_end_of_the_longest_sequence(key, weights, reward_steps, needed):
    # 12 + 20 = 32 tokens need no padding; the position after them does.
    asked = {"kind": "model", "weights": weights}
    changes = {f"reward__{name}": value for name, value in asked.items()}
    changes["warm_start__reward_steps"] = reward_steps
    check(config(**changes, **{key: needed}), None, 8)  # the directory holds no weights
    assert problems(config(**changes, **{key: needed - 1}))[0].endswith(f"set it to at least {needed}")


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:6379"])
def test_the_devices_of_this_machine_bound_only_a_ray_of_its_own(address):
    assert problems(config(), devices=4) == [
        "cluster.pools ask for 8 devices, but this machine has 4 (cpu); make them smaller, or set"
        " cluster.address to a Ray of several machines; the same command with --plan says what would run on them"
    ]
    check(config(cluster__address=address), 100, 4)


def test_an_algorithm_of_ones_own_says_which_roles_the_pools_need(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from jaxflow.dataflow import Dataflow\n"
        "OWN = Dataflow(step=lambda roles, prompts: [], cast=('actor', 'reward'))\n"
    )
    own = {"algorithm__name": f"{file}:OWN"}
    check(
        config(**own, cluster__pools__main__roles=["actor", "reward"], critic__minibatch_sequences=7), 100, 8
    )
    found = problems(config(**own, cluster__pools__main__roles=["actor", "critic"]))
    assert len(found) == 2
    assert "'critic' is no role of" in found[0] and "needs a role reward" in found[1]


def test_files_are_asked_for_together(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+1=", "ground_truth": "2"}))
    found = problems(config(data__train_files=[str(rows), str(tmp_path / "rows.csv")], warm_start__steps=2))
    assert [problem.split(":")[0] for problem in found] == [
        "data.train_files",
        "data.train_files needs data.tokenizer",
        "warm_start.steps > 0 imitates the built-in task, which data.train_files replaces; set it to 0",
    ]


def test_files_that_exist_pass_and_need_no_built_in_task(tmp_path):
    rows, function = tmp_path / "rows.parquet", tmp_path / "score.py"
    rows.touch()
    function.touch()
    check(
        config(
            data__task="none",
            data__train_files=[str(rows)],
            data__tokenizer=str(tmp_path),
            reward__function=f"{function}:compute_score",
        ),
        100,
        None,
    )


def test_all_contradictions_are_reported_at_once():
    bad = config(
        algorithm__name="dqn",
        rollout__top_p=2.0,
        cluster__pools__main__devices_per_host=6,
        actor__model__head_width=3,
        actor__minibatch_sequences=100,
        algorithm__dual_clip=0.5,
        actor__weights="/nowhere",
    )
    assert len(problems(bad)) == 7


def test_sizes_of_zero_are_reported_without_dividing_by_them():
    whole = {key: 0 for key, value in GOOD.items() if isinstance(value, int)}
    del whole["run.total_steps"]
    zeros = {key.replace(".", "__"): value for key, value in whole.items()}
    found = problems(config(**zeros, actor__model__kv_heads=0))
    assert sum("must be at least 1" in problem for problem in found) == len(zeros) + 1
