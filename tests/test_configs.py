"""The project's config files say nothing that contradicts itself, and are the placements they claim to be."""

import pathlib
import runpy

import pytest

from jaxflow.batch_algebra import derive, describe
from jaxflow.checks import check
from jaxflow.config import Config, from_config_dict
from jaxflow.data.source import load_tokenizer
from jaxflow.mapping.auto import chosen
from jaxflow.plan_command import players
from jaxflow.types import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
ASKS_FOR = {
    "ppo_learned_reward": ("reward.weights",),
    "safe_rlhf_13b": ("cost.weights",),
    "safe_rlhf_tiny": ("reward.weights", "cost.weights"),
}
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))


def read(name: str) -> Config:
    return from_config_dict(runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"]())


@pytest.mark.parametrize("name", FILES)
def test_config_files_of_the_project_pass_all_checks(name):
    config = read(name)
    vocabulary_size = load_tokenizer(config.data.task, config.data.tokenizer).vocabulary_size
    if config.cluster.mapping == "auto":
        config = chosen(config, vocabulary_size, players(config))
    if name in ASKS_FOR:  # a run of it begins with weights that nobody has but the user
        with pytest.raises(UserError) as refused:
            check(config, vocabulary_size, None)
        _, *mistakes = str(refused.value).splitlines()
        for key, mistake in zip(ASKS_FOR[name], mistakes, strict=True):
            assert key in mistake
    else:
        check(config, vocabulary_size, None)
    assert describe(config, derive(config, vocabulary_size))


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        ("ppo_tiny", {("actor", "critic", "reference", "reward", "estimator"): (1, 4)}),
        ("ppo_split", {("actor", "reference"): (2, 2), ("critic", "reward", "estimator"): (1, 2)}),
        (
            "ppo_standalone",
            {
                ("actor",): (2, 2),
                ("critic", "estimator"): (1, 2),
                ("reference",): (1, 1),
                ("reward",): (1, 1),
            },
        ),
    ],
)
def test_each_placement_is_the_one_its_file_is_named_for(name, placement):
    pools = read(name).cluster.pools.values()
    assert {pool.roles: (pool.hosts, pool.devices_per_host) for pool in pools} == placement


@pytest.mark.parametrize("name", ["ppo_split", "ppo_standalone"])
def test_split_placements_train_the_policy_of_the_colocated_run(name):
    split, colocated = read(name), read("ppo_tiny")
    assert (split.actor, split.critic, split.data, split.algorithm) == (
        colocated.actor,
        colocated.critic,
        colocated.data,
        colocated.algorithm,
    )
    assert split.reward.kind == "model"
