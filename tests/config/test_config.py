"""The schema in and out: what a config file, a command line and a saved file can and cannot say."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from jaxflow.config import (
    Config,
    DevicesConfig,
    MeshConfig,
    PoolConfig,
    check_overrides,
    default_config_dict,
    difference,
    flatten,
    from_config_dict,
    from_json,
    override,
    pool,
    to_json,
)
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.types import UserError

MODELS = ("critic.model", "reward.model", "cost.model")


def two_pools() -> ConfigDict:
    """Return the defaults with the policy on two hosts and all else beside it."""
    values = default_config_dict()
    values.cluster.pools = {
        "policy": pool(["actor", "reference"], hosts=2, devices_per_host=2, data=2, tensor=2),
        "judges": pool(["critic", "reward", "estimator"], data=1),
    }
    return values


def other(value: object) -> object:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, tuple):
        return ("a.jsonl", "b.jsonl")
    return value + 1


def message(call, *arguments) -> list[str]:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value).split("\n")


def test_a_file_that_changes_nothing_gives_the_defaults():
    assert from_config_dict(default_config_dict()) == Config()


def test_every_key_can_be_overridden_from_the_command_line():
    # A preset fills a model in: no other name than a preset's will do.
    free = {key: value for key, value in flatten(Config()).items() if not key.endswith(".preset")}
    wanted = {key: other(value) for key, value in free.items() if key not in MODELS}
    wanted["rollout.stop_token_ids"] = (2, 3)  # the one list of numbers
    wanted |= {
        f"{model}.{key}": other(value) for model in MODELS for key, value in vars(DecoderConfig()).items()
    }
    pairs = [
        (key, item)
        for key, value in wanted.items()
        for item in (value if isinstance(value, tuple) else [value])
    ]
    overrides = [
        f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in pairs
    ]
    values = default_config_dict()
    assert override(values, overrides) == []
    config = from_config_dict(values)
    assert {key: value for key, value in flatten(config).items() if key in wanted} == wanted
    assert len(difference(config, Config())) == len(wanted)


@pytest.mark.parametrize("role", ["critic", "reward"])
def test_model_keys_left_unset_follow_the_actor(role):
    values = default_config_dict()
    values.actor.model.width = 64
    config = from_config_dict(values)
    assert {"critic": config.critic_model, "reward": config.reward_model}[role] == DecoderConfig(width=64)
    values[role].model.layers = 2
    config = from_config_dict(values)
    both = {"critic": config.critic_model, "reward": config.reward_model}
    assert both.pop(role) == DecoderConfig(width=64, layers=2)
    assert list(both.values()) == [DecoderConfig(width=64)]


def test_pools_of_a_config_file_take_the_place_of_the_default_one():
    assert from_config_dict(two_pools()).cluster.pools == {
        "policy": PoolConfig(("actor", "reference"), 2, 2, MeshConfig(data=2, tensor=2)),
        "judges": PoolConfig(("critic", "reward", "estimator")),
    }


def test_a_pool_written_as_a_dictionary_takes_defaults_and_overrides():
    values = default_config_dict()
    values.cluster.pools = {"all": {"roles": ("actor",)}}
    override(
        values, ["--config.cluster.pools.all.mesh.data=2", "--config.cluster.pools.all.devices_per_host=2"]
    )
    assert from_config_dict(values).cluster.pools == {
        "all": PoolConfig(("actor",), devices_per_host=2, mesh=MeshConfig(data=2))
    }


def test_more_kinds_of_devices_take_defaults_and_overrides():
    values = default_config_dict()
    values.cluster.more_devices = {"judges": {"kind": "l40s"}}
    override(values, ["--config.cluster.more_devices.judges.hosts=2"])
    assert from_config_dict(values).cluster.more_devices == {"judges": DevicesConfig("l40s", 2, 8)}


def test_a_file_that_names_few_keys_can_be_overridden_in_all():
    values = ConfigDict({"critic": {"model": {"layers": 2}}}).lock()
    override(values, ["--config.cluster.pools.main.hosts=3", "--config.critic.model.width=64"])
    config = from_config_dict(values)
    assert config.cluster.pools["main"].hosts == 3
    assert config.critic_model == DecoderConfig(layers=2, width=64)


def test_pools_written_empty_stay_empty():
    values = default_config_dict()
    values.cluster.pools = {}
    override(values, [])
    assert from_config_dict(values).cluster.pools == {}


def test_all_unknown_keys_are_reported_at_once_with_the_nearest_right_one():
    values = default_config_dict()
    values.actor.lr = 1e-4
    values.actor.model.n_layers = 2
    values.algorithm.entropy_coeff = 0.1
    values.rollouts = {"temperature": 1.0}
    lines = message(from_config_dict, values)
    assert lines[0] == "the config has 4 mistakes:"
    assert sorted(lines[1:]) == [
        "  • actor.lr: no such key; nearest: actor.optimizer.learning_rate",
        "  • actor.model.n_layers: no such key; nearest: actor.model.layers",
        "  • algorithm.entropy_coeff: no such key; nearest: algorithm.entropy_coefficient",
        "  • rollouts: no such key; nearest: rollout",
    ]


def test_an_unknown_key_that_resembles_none_lists_its_group():
    lines = message(from_json, {"checkpoint": {"zzz": 1}})
    assert lines[1:] == [
        "  • checkpoint.zzz: no such key; checkpoint holds: every_steps, every_minutes, keep, resume"
    ]


def test_an_unknown_key_of_a_pool_is_reported_with_that_pools_nearest():
    values = two_pools()
    values.cluster.pools.policy.mesh.tensr = 2
    assert message(from_config_dict, values)[1:] == [
        "  • cluster.pools.policy.mesh.tensr: no such key; nearest: cluster.pools.policy.mesh.tensor"
    ]


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"run": {"seed": True}}, "run.seed"),
        ({"run": {"total_steps": "3"}}, "run.total_steps"),
        ({"run": {"total_steps": 3.0}}, "run.total_steps"),
        ({"run": {"seed": None}}, "run.seed"),
        ({"run": {"evaluate_before": 1}}, "run.evaluate_before"),
        ({"algorithm": {"discount": float("nan")}}, "algorithm.discount"),
        ({"algorithm": {"kl": {"target": False}}}, "algorithm.kl.target"),
        ({"data": {"train_files": "a.jsonl"}}, "data.train_files"),
        ({"data": {"train_files": ["a.jsonl", 1]}}, "data.train_files"),
        ({"data": {"task": 3}}, "data.task"),
        ({"actor": 3}, "actor"),
        ({"critic": {"model": {"layers": 2.5}}}, "critic.model.layers"),
        ({"cluster": {"pools": 3}}, "cluster.pools"),
        ({"cluster": {"pools": {"main": 3}}}, "cluster.pools.main"),
        ({"cluster": {"pools": {"main": {"roles": "actor"}}}}, "cluster.pools.main.roles"),
        ({"cluster": {"pools": {"main": {"mesh": {"data": "2"}}}}}, "cluster.pools.main.mesh.data"),
    ],
)
def test_a_wrong_type_is_refused_under_its_key(tree, key):
    lines = message(from_json, tree)
    assert len(lines) == 2
    assert lines[1].startswith(f"  • {key}: expected ")


def test_a_whole_number_is_fine_where_a_fraction_is_expected():
    gamma = from_json({"algorithm": {"discount": 1}}).algorithm.discount
    assert gamma == 1.0
    assert isinstance(gamma, float)


def test_json_round_trip_returns_an_equal_tree():
    changed = dataclasses.replace(
        Config(),
        data=dataclasses.replace(Config().data, train_files=("a.jsonl", "b.parquet")),
        critic=dataclasses.replace(Config().critic, model=DecoderConfig(layers=7)),
    )
    for config in (Config(), changed, from_config_dict(two_pools())):
        assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_saved_config_that_lacks_a_newer_key_takes_its_default():
    tree = to_json(Config())
    del tree["run"]["seed"]
    assert from_json(tree) == Config()


def test_difference_names_exactly_the_changed_keys():
    values = default_config_dict()
    values.run.seed = 1
    values.algorithm.kl.target = 0.2
    values.critic.model.layers = 2
    changed = from_config_dict(values)
    assert difference(changed, changed) == []
    critic_keys = [f"critic.model.{field.name}" for field in dataclasses.fields(DecoderConfig)]
    assert difference(Config(), changed) == ["run.seed", *critic_keys, "algorithm.kl.target"]


def test_difference_names_the_keys_of_pools_on_either_side():
    before = from_config_dict(two_pools())
    values = two_pools()
    values.cluster.pools.judges.mesh.data = 2
    assert difference(before, from_config_dict(values)) == ["cluster.pools.judges.mesh.data"]
    gone = [key for key in flatten(before) if key.startswith("cluster.pools.policy.")]
    del values.cluster.pools.policy
    values.cluster.pools.judges.mesh.data = 1
    assert difference(before, from_config_dict(values)) == gone
    assert difference(from_config_dict(values), before) == gone


def test_misspelt_overrides_are_refused_all_at_once():
    arguments = [
        "--config.actor.lr=3",
        "-config.run.sed",
        "2",
        "--noconfig.tracking.tensorbord",
        "--config.run.seed=3",
        "--config.actor=3",
        "--config.cluster.pools.polcy.mesh.data=2",
        "--config.cluster.pools.judges.mesh.dat=2",
        "--config.cluster.pools=3",
    ]
    lines = message(check_overrides, arguments, two_pools())
    assert lines[0] == "the command line has 7 mistakes:"
    assert [line.split(";")[0] for line in lines[1:]] == [
        "  • actor.lr: no such key",
        "  • run.sed: no such key",
        "  • tracking.tensorbord: no such key",
        "  • cluster.pools.polcy.mesh.data: no such key",
        "  • cluster.pools.judges.mesh.dat: no such key",
        "  • actor: is a group",
        "  • cluster.pools: is a group",
    ]
    assert lines[4].endswith("nearest: cluster.pools.policy.mesh.data")
    assert lines[5].endswith("nearest: cluster.pools.judges.mesh.data")
    assert lines[7].endswith("set one of judges, policy")


def test_overrides_are_set_and_all_other_arguments_come_back():
    values = two_pools()
    line = ["--config.run.seed", "3", "--noconfig.actor.model.remat", "--nonsense=1", "stray"]
    assert override(values, [*line, "--config.cluster.pools.judges.roles=critic"]) == [
        "--nonsense=1",
        "stray",
    ]
    config = from_config_dict(values)
    assert (config.run.seed, config.actor.model.remat) == (3, False)
    assert config.cluster.pools["judges"].roles == ("critic",)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.run.total_steps=many", "total_steps=many"),
        ("--config.cluster.pools.policy.hosts=two", "hosts=two"),
        ("--config.run.seed", "run.seed"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused_with_its_key(argument, expected):
    lines = message(override, two_pools(), [argument])
    assert len(lines) == 1 and lines[0].startswith("the command line: ") and expected in lines[0]
