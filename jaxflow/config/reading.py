"""Configs in and out: a config file's `ml_collections.ConfigDict`, the command line, JSON, the frozen tree.

Knows no key of the schema but which models follow the actor's.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import config_dict, config_flags

from jaxflow.config.cluster import DevicesConfig, MeshConfig, PoolConfig
from jaxflow.config.schema import Config
from jaxflow.config.shapes import with_models
from jaxflow.config.tree import group_of, key_paths, keys_in, leaves, read_group, unknown_key, unknown_keys
from jaxflow.types import UserError

# Sections whose `model` follows actor.model in the keys that it leaves unset.
_FOLLOWERS = ("critic", "reward", "cost")


def default_config_dict() -> config_dict.ConfigDict:
    """Return every key with its default, for a config file to change and the command line to override.

    `critic.model`, `reward.model` and `cost.model` are there with empty keys of the right types: those that stay
    empty follow `actor.model`.
    """
    return config_dict.ConfigDict(_default_tree(Config()))


def pool(
    roles: Sequence[str],
    hosts: int = PoolConfig.hosts,
    devices_per_host: int = PoolConfig.devices_per_host,
    offload: Sequence[str] = PoolConfig.offload,
    generation_scoring: Sequence[str] = PoolConfig.generation_scoring,
    device: str = PoolConfig.device,
    **mesh: int,
) -> config_dict.ConfigDict:
    """Return one pool for a config file: `config.cluster.pools = {"main": pool([...], 1, 4, data=2, tensor=2)}`."""
    chosen = PoolConfig(
        tuple(roles),
        hosts,
        devices_per_host,
        MeshConfig(**mesh),
        tuple(offload),
        tuple(generation_scoring),
        device,
    )
    return config_dict.ConfigDict(_default_tree(chosen))


def from_config_dict(values: config_dict.ConfigDict) -> Config:
    """Turn a config file's result into the frozen tree; keys that are missing take their defaults.

    Models that have a preset or weights take their shape. Raises `UserError` with every unknown key (and the nearest
    right one) and every wrong type at once, then with every key that contradicts a preset or weights.
    """
    return _from_tree(values.to_dict(), "the config", stored=True)


def to_json(config: Config) -> dict[str, object]:
    """Return the tree as plain JSON values: dicts, lists, strings, numbers, true, false and null."""
    return json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))


def from_json(tree: Mapping[str, object]) -> Config:
    """Invert `to_json`. Raises `UserError` as `from_config_dict` does."""
    return _from_tree(tree, "the saved config", stored=False)


def flatten(config: Config) -> dict[str, object]:
    """Return every value under its dotted key, in the order of the schema."""
    return dict(leaves(dataclasses.asdict(config)))


def difference(a: Config, b: Config) -> list[str]:
    """Return the dotted keys in which two configs differ, in the order of the schema."""
    old, new = flatten(a), flatten(b)
    known = key_paths(Config, dataclasses.asdict(a), dataclasses.asdict(b))
    return [key for key in known if old.get(key) != new.get(key)]


def override(values: config_dict.ConfigDict, arguments: Sequence[str]) -> list[str]:
    """Set what `--config.KEY=VALUE` arguments say in a config file's result; return the other arguments.

    Raises `UserError` with every key that neither the schema nor the file's pools have, or a value that cannot be.
    """
    _complete(values)
    check_overrides(arguments, values)
    parser = flags.FlagValues()
    parser.set_gnu_getopt()
    line = ["", *arguments]
    config_flags.DEFINE_config_dict("config", values, flag_values=parser, sys_argv=line)
    try:
        return parser(line, known_only=True)[1:]
    except (flags.Error, TypeError) as error:
        raise UserError(f"the command line: {str(error).splitlines()[0]}") from error


def check_overrides(arguments: Sequence[str], values: config_dict.ConfigDict) -> None:
    """Refuse `--config.KEY=VALUE` arguments whose key the schema, or the file's pools, lack, all at once.

    The flag parser would stop at the first one with a stack trace.
    """
    matches = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments)
    keys = list(dict.fromkeys(match[1] for match in matches if match is not None))
    known = key_paths(Config, values.to_dict())
    problems = [unknown_key(key, known) for key in keys if key not in known]
    problems += [
        f"{key}: is a group; set one of {', '.join(keys_in(key, known))}"
        for key in keys
        if known.get(key, False)
    ]
    refuse("the command line", problems)


def _complete(values: config_dict.ConfigDict) -> None:
    """Add the keys that a config file left out: the flag parser sets only what is there."""
    defaults = _default_tree(Config())
    cluster = values.to_dict().get("cluster")
    if isinstance(cluster, Mapping):
        for key, entry in (("pools", PoolConfig()), ("more_devices", DevicesConfig())):
            if isinstance(cluster.get(key), Mapping):
                defaults["cluster"][key] = {name: _default_tree(entry) for name in cluster[key]}
    with values.unlocked():
        _fill(values, defaults)


def _fill(values: config_dict.ConfigDict, defaults: Mapping[str, typing.Any]) -> None:
    for key, default in defaults.items():
        if key not in values:
            values[key] = default
        elif isinstance(default, Mapping) and isinstance(values[key], config_dict.ConfigDict):
            _fill(values[key], default)


def refuse(what: str, problems: Sequence[str]) -> None:
    """Raise one `UserError` with a line per problem; do nothing where there is none."""
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise UserError("\n".join([f"{what} has {count}:", *(f"  • {problem}" for problem in problems)]))


def _default_tree(group: object) -> dict[str, object]:
    tree: dict[str, object] = {}
    for key, hint in typing.get_type_hints(type(group)).items():
        value = vars(group)[key]
        if dataclasses.is_dataclass(value):
            tree[key] = _default_tree(value)
        elif isinstance(value, Mapping):
            tree[key] = {name: _default_tree(entry) for name, entry in value.items()}
        elif isinstance(hint, types.UnionType):
            kinds = typing.get_type_hints(group_of(hint))
            tree[key] = {name: config_dict.placeholder(kind) for name, kind in kinds.items()}
        else:
            tree[key] = value
    return tree


def _from_tree(tree: Mapping[str, typing.Any], what: str, stored: bool) -> Config:
    problems = unknown_keys(Config, tree)
    config = read_group(Config, tree, "", problems)
    refuse(what, problems)
    config = with_models(config, tree, _FOLLOWERS, stored, problems)
    refuse(what, problems)
    return config
