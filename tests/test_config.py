"""The schema in and out: what a config file, a command line and a saved file can and cannot say."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from jaxflow.config import (
    Config,
    check_overrides,
    default_config_dict,
    difference,
    flatten,
    from_config_dict,
    from_json,
    to_json,
)
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.types import UserError

CONFIG_FILE = "from jaxflow.config import default_config_dict as get_config\n"


def parse(tmp_path: pathlib.Path, *overrides: str) -> Config:
    """Read a config file of defaults under command-line overrides, as the program does."""
    path = tmp_path / "defaults.py"
    path.write_text(CONFIG_FILE)
    arguments = ["program", f"--config={path}", *overrides]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    return from_config_dict(holder.value)


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


def test_every_key_can_be_overridden_from_the_command_line(tmp_path):
    wanted = {key: other(value) for key, value in flatten(Config()).items() if key != "critic.model"}
    wanted |= {f"critic.model.{key}": other(value) for key, value in vars(DecoderConfig()).items()}
    pairs = [
        (key, item)
        for key, value in wanted.items()
        for item in (value if isinstance(value, tuple) else [value])
    ]
    overrides = [
        f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in pairs
    ]
    check_overrides(overrides)
    config = parse(tmp_path, *overrides)
    assert flatten(config) == wanted
    assert len(difference(config, Config())) == len(wanted)


def test_critic_keys_left_unset_follow_the_actor():
    values = default_config_dict()
    values.actor.model.width = 64
    assert from_config_dict(values).critic_model == DecoderConfig(width=64)
    values.critic.model.layers = 2
    assert from_config_dict(values).critic_model == DecoderConfig(width=64, layers=2)


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
    for config in (Config(), changed):
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


def test_misspelt_overrides_are_refused_before_flags_are_parsed():
    arguments = [
        "--config=a.py",
        "--config.actor.lr=3",
        "-config.run.sed",
        "2",
        "--noconfig.tracking.tensorbord",
    ]
    lines = message(check_overrides, [*arguments, "--config.run.seed=3", "--config.actor=3", "--workdir=x"])
    assert lines[0] == "the command line has 4 mistakes:"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  • actor.lr",
        "  • run.sed",
        "  • tracking.tensorbord",
        "  • actor",
    ]


def test_right_overrides_pass():
    check_overrides(["--config=a.py", "--config.run.seed", "3", "--noconfig.actor.model.remat", "--help"])


@pytest.mark.parametrize(
    "path", sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py")), ids=str
)
def test_config_files_of_the_project_fit_the_schema(path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(from_config_dict(module.get_config()), Config)
