"""Contradictions are found, all at once; the batch algebra is the one computed by hand."""

import json

import pytest

from jaxflow.batch_algebra import MeshSizes, UpdatePlan, derive, describe
from jaxflow.config import Config, from_json
from jaxflow.config_checks import check
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.types import UserError

# Eight devices: data 2 × fsdp 1 × tensor 4, generation with t_g = 2; 96 prompts × 4 samples.
GOOD = {
    "run.total_steps": 10,
    "cluster.devices": 8,
    "cluster.mesh.data": 2,
    "cluster.mesh.tensor": 4,
    "cluster.mesh.generation_tensor": 2,
    "data.prompts_per_step": 96,
    "data.max_prompt_tokens": 12,
    "rollout.samples_per_prompt": 4,
    "rollout.max_response_tokens": 20,
    "rollout.sequences_per_device": 64,
    "actor.minibatch_sequences": 128,
    "actor.update_epochs": 2,
    "actor.microbatch_tokens_per_device": 640,
    "critic.minibatch_sequences": 96,
}


def config(**changes: object) -> Config:
    """Build the good config with dotted keys changed (`__` for a dot)."""
    tree: dict = {}
    for path, value in {**GOOD, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        *groups, key = path.split(".")
        group = tree
        for name in groups:
            group = group.setdefault(name, {})
        group[key] = value
    return from_json(tree)


def problems(bad: Config, vocabulary_size: int | None = 100, devices: int | None = 8) -> list[str]:
    with pytest.raises(UserError) as caught:
        check(bad, vocabulary_size, devices)
    return [line.removeprefix("  • ") for line in str(caught.value).split("\n")[1:]]


def test_the_defaults_contradict_nothing():
    check(Config(), None, None)


def test_the_good_config_passes():
    check(config(), 100, 8)


def test_the_batch_algebra_is_the_one_computed_by_hand():
    derived = derive(config(critic__model__layers=1), 100)
    assert derived.mesh == MeshSizes(data=2, fsdp=1, tensor=2, micro=2)
    assert (derived.mesh.training_replicas, derived.mesh.generation_replicas) == (2, 4)
    assert (derived.prompts_per_step, derived.sequences_per_step) == (96, 384)
    assert derived.longest_sequence_tokens == 32
    assert (derived.generation_rows, derived.generation_rounds) == (96, 2)
    # Actor: 384 / 128 = 3 mini-batches × 2 passes, in 10 − 3 steps; 640 / 32 = 20 rows on each of 2 replicas.
    assert derived.actor == UpdatePlan(
        minibatch_sequences=128,
        minibatches=3,
        updates_per_step=6,
        total_updates=60,
        microbatches_if_longest=4,
    )
    assert (derived.critic.minibatches, derived.critic.updates_per_step, derived.critic.total_updates) == (
        4,
        4,
        40,
    )
    assert derived.actor_model == DecoderConfig(vocabulary_size=100)
    assert derived.critic_model == DecoderConfig(vocabulary_size=100, layers=1)


def test_a_vocabulary_that_is_given_stays():
    assert derive(config(actor__model__vocabulary_size=128), 100).actor_model.vocabulary_size == 128


def test_the_description_holds_the_whole_chain():
    text = describe(config(), derive(config(), 100))
    for part in (
        "96 prompts × 4 samples = 384 sequences",
        "384 sequences → 3 mini-batches of 128 × 2 epochs = 6 updates",
        "at most 640 padded tokens per device: 4 per mini-batch",
        "training    data 2 × fsdp 1 × tensor 4 → rows over 2 replicas",
        "generation  data 2 × fsdp 1 × micro 2 × tensor 2 → rows over 4 replicas",
        "10 steps → 60 actor updates, 40 critic updates",
    ):
        assert part in text
    # 4 layers of (3·128·512 + 2·128·32·8 + 2·128) + 128, two tables of 128 (padded) × 128.
    assert "actor 1,082,496 ·" in text
    # One table and a vector of 128 in place of the other.
    assert "critic 1,066,240" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"cluster__devices": 4},
            "cluster.mesh: data 2 × fsdp 1 × tensor 4 = 8 devices, but cluster.devices = 4",
        ),
        ({"cluster__mesh__generation_tensor": 3}, "set it to one of: 1, 2, 4"),
        ({"actor__model__heads": 6, "actor__model__kv_heads": 4}, "does not divide actor.model.heads = 6"),
        (
            {"critic__model__kv_heads": 2},
            "critic.model.kv_heads = 2 cannot be split over cluster.mesh.tensor = 4",
        ),
        ({"actor__model__mlp_width": 510}, "actor.model.mlp_width = 510 cannot be split"),
        ({"actor__model__head_width": 31}, "make it even"),
        ({"actor__model__vocabulary_size": 99}, "but the tokenizer has 100 tokens"),
        ({"actor__minibatch_sequences": 100}, "actor.minibatch_sequences = 100 sequences over all devices"),
        ({"critic__minibatch_sequences": 3}, "the 2 training replicas (data × fsdp); set it to 2"),
        ({"critic__minibatch_sequences": 768}, "set it to 384"),
        ({"actor__microbatch_tokens_per_device": 31}, "set it to at least 32"),
        ({"critic__microbatch_tokens_per_device": 1}, "critic.microbatch_tokens_per_device = 1 cannot hold"),
        (
            {"rollout__score_microbatch_tokens_per_device": 8},
            "rollout.score_microbatch_tokens_per_device = 8",
        ),
        ({"warm_start__steps": 5, "warm_start__sequences_per_step": 7}, "warm_start.sequences_per_step = 7"),
        ({"rollout__temperature": -0.1}, "rollout.temperature = -0.1: must be at least 0"),
        ({"rollout__top_p": 0.0}, "rollout.top_p = 0.0: must be in (0, 1]"),
        ({"rollout__top_p": 1.01}, "rollout.top_p = 1.01: must be in (0, 1]"),
        ({"algorithm__clip_ratio_low": 1.0}, "algorithm.clip_ratio_low = 1.0: must be in [0, 1)"),
        ({"algorithm__clip_ratio_high": -0.2}, "algorithm.clip_ratio_high = -0.2: must be at least 0"),
        ({"algorithm__dual_clip": 1.0}, "must be above 1, or 0 to switch it off"),
        ({"actor__optimizer__beta2": 1.0}, "actor.optimizer.beta2 = 1.0: must be in [0, 1)"),
        ({"run__total_steps": 0}, "run.total_steps = 0: must be at least 1"),
        ({"rollout__samples_per_prompt": 0}, "rollout.samples_per_prompt = 0: must be at least 1"),
        ({"algorithm__name": "pppo"}, "algorithm.name = 'pppo': did you mean 'ppo'?"),
        ({"algorithm__loss_aggregation": "token_mean"}, "did you mean 'token-mean'?"),
        ({"algorithm__kl__loss_estimator": "k4"}, "it is one of: k1, k2, k3"),
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


def test_generation_needs_a_row_share_for_every_freed_device():
    # 2 × 3 = 6 sequences suit the 2 training replicas but not the 4 of generation.
    bad = config(
        data__prompts_per_step=2,
        rollout__samples_per_prompt=3,
        actor__minibatch_sequences=6,
        critic__minibatch_sequences=6,
    )
    assert len(problems(bad)) == 1
    assert "= 6 sequences per step cannot be split over the 4 generation replicas" in problems(bad)[0]


def test_too_few_devices_are_reported():
    assert problems(config(), devices=4)[0].startswith("cluster.devices = 8, but this machine has 4 (cpu)")


def test_width_must_split_over_fsdp():
    bad = config(cluster__mesh__fsdp=3, cluster__devices=24, actor__minibatch_sequences=96)
    assert any(
        "width = 128 cannot be split over cluster.mesh.fsdp = 3" in p for p in problems(bad, devices=24)
    )


def test_files_are_asked_for_together(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1+1=", "ground_truth": "2"}))
    found = problems(config(data__train_files=[str(rows), str(tmp_path / "rows.csv")], warm_start__steps=2))
    assert [problem.split(":")[0] for problem in found] == [
        "data.train_files",
        "data.train_files needs data.tokenizer",
        "data.train_files needs reward.function",
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
        algorithm__name="dpo",
        rollout__top_p=2.0,
        cluster__devices=6,
        actor__model__head_width=3,
        actor__minibatch_sequences=100,
        algorithm__dual_clip=0.5,
        actor__weights="/nowhere",
    )
    assert len(problems(bad)) == 7


def test_sizes_of_zero_are_reported_without_dividing_by_them():
    zeros = {key.replace(".", "__"): 0 for key in GOOD if key not in ("run.total_steps", "cluster.devices")}
    found = problems(config(**zeros, actor__model__kv_heads=0))
    assert sum("must be at least 1" in problem for problem in found) == len(zeros) + 1
