"""Plain trees of values into trees of frozen dataclasses, and the dotted keys of both. Knows no key of any schema.

A schema is a dataclass whose fields are bool, int, float, str, a tuple of str or of int, another such dataclass, one or
None, or a mapping from names to one. Names of a mapping are the user's, so its keys are those of a given tree.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence


def read_group(group: type, tree: Mapping[str, object], path: str, problems: list[str]) -> typing.Any:
    """Build the dataclass `group` from a plain tree; keys that are missing take their defaults.

    Unknown keys and wrong types are added to `problems`; where there are any the result is not to be used.
    """
    hints = typing.get_type_hints(group)
    known = {key: hint for key, hint in hints.items() if key in tree}
    return group(**{key: _read(hint, tree[key], join(path, key), problems) for key, hint in known.items()})


def key_paths(group: type, *trees: object) -> dict[str, bool]:
    """Return every dotted key of the schema, in its order, and whether it is a group.

    Mappings have the names that they have in any of the trees.
    """
    return dict(_paths_below(group, trees, ""))


def unknown_keys(group: type, tree: Mapping[str, object]) -> list[str]:
    """Say of every key of the tree that the schema lacks which right one is nearest."""
    known = key_paths(group, tree)
    return [unknown_key(path, known) for path in _strange_keys(group, tree, "")]


def unknown_key(path: str, known: Mapping[str, bool]) -> str:
    """Say which right key, in any group, is most like a wrong one: by spelling, initials, then by group."""
    group, _, name = path.rpartition(".")

    def likeness(candidate: str) -> tuple[float, float]:
        candidate_group, _, candidate_name = candidate.rpartition(".")
        initials = "".join(word[0] for word in candidate_name.split("_"))
        same_initials = len(name) > 1 and name == initials
        of_names = 1.0 if same_initials else difflib.SequenceMatcher(None, name, candidate_name).ratio()
        return of_names, difflib.SequenceMatcher(None, group, candidate_group).ratio()

    ranked = [(*likeness(key), key) for key in known]
    alike = [(of_names + 0.5 * of_groups, key) for of_names, of_groups, key in ranked if of_names >= 0.6]
    if alike:
        return f"{path}: no such key; nearest: {max(alike)[1]}"
    inside = group if known.get(group, False) else ""
    return f"{path}: no such key; {inside or 'the config'} holds: {', '.join(keys_in(inside, known))}"


def keys_in(path: str, known: Mapping[str, bool]) -> list[str]:
    """Return the names of the keys directly in a group; the empty path is the whole tree."""
    return [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == path]


def leaves(tree: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value of a plain tree under its dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, join(path, key))
        else:
            yield join(path, key), value


def group_of(hint: typing.Any) -> type | None:
    """Return the dataclass that a field holds (optionally), or None where it holds something else."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def join(path: str, key: str) -> str:
    """Return the dotted key of `key` in the group at `path`."""
    return f"{path}.{key}" if path else key


def _is_mapping(hint: typing.Any) -> bool:
    return typing.get_origin(hint) is Mapping


def _children(hint: typing.Any, trees: Sequence[object]) -> dict[str, typing.Any] | None:
    """Return the fields of a group, or the entries that a mapping has in these trees; None for a plain value."""
    group = group_of(hint)
    if group is not None:
        return typing.get_type_hints(group)
    if not _is_mapping(hint):
        return None
    entry = typing.get_args(hint)[1]
    return {str(name): entry for tree in trees if isinstance(tree, Mapping) for name in tree}


def _below(trees: Sequence[object], key: str) -> list[object]:
    return [tree[key] for tree in trees if isinstance(tree, Mapping) and key in tree]


def _paths_below(hint: typing.Any, trees: Sequence[object], path: str) -> Iterator[tuple[str, bool]]:
    children = _children(hint, trees)
    for key, kind in {} if children is None else children.items():
        below = _below(trees, key)
        yield join(path, key), _children(kind, below) is not None
        yield from _paths_below(kind, below, join(path, key))


def _strange_keys(hint: typing.Any, tree: object, path: str) -> Iterator[str]:
    children = _children(hint, (tree,))
    if children is None or not isinstance(tree, Mapping):
        return
    for key, value in tree.items():
        if str(key) not in children:
            yield join(path, str(key))
        else:
            yield from _strange_keys(children[str(key)], value, join(path, str(key)))


def _read(hint: typing.Any, value: object, path: str, problems: list[str]) -> object:
    group = group_of(hint)
    if isinstance(hint, types.UnionType):
        if isinstance(value, Mapping):
            value = {key: item for key, item in value.items() if item is not None}
        if value is None or value == {}:
            return None
    if group is not None and isinstance(value, Mapping):
        return read_group(group, value, path, problems)
    if _is_mapping(hint) and isinstance(value, Mapping):
        entry = typing.get_args(hint)[1]
        # Names become parts of dotted keys.
        wrong = [name for name in value if not str(name).isidentifier()]
        problems += [f"{path}: the name {name!r} must be letters, digits and underscores" for name in wrong]
        return {
            str(name): _read(entry, item, join(path, str(name)), problems) for name, item in value.items()
        }
    return _read_leaf(hint, value, path, problems)


def _read_leaf(hint: typing.Any, value: object, path: str, problems: list[str]) -> object:
    # A bool is an int to Python; in a config it is a mistake.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(value):
        return float(value)
    if hint is int and is_number and isinstance(value, int):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        entry = typing.get_args(hint)[0]
        if all(isinstance(item, entry) and not isinstance(item, bool) for item in value):
            return tuple(value)
    problems.append(f"{path}: expected {_kind(hint)}, got {value!r} ({type(value).__name__})")
    return value


def _kind(hint: typing.Any) -> str:
    if group_of(hint) is not None or _is_mapping(hint):
        return "a group of keys"
    kinds = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    return kinds.get(hint, "a list of whole numbers" if hint == tuple[int, ...] else "a list of texts")
