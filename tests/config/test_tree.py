"""Any schema of frozen dataclasses is read from a plain tree, and every key has one dotted name."""

import dataclasses
from collections.abc import Mapping

import pytest

from jaxflow.config.tree import key_paths, keys_in, leaves, read_group, unknown_key, unknown_keys


@dataclasses.dataclass(frozen=True)
class Leaf:
    size: int = 1
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Root:
    name: str = ""
    parts: tuple[str, ...] = ()
    leaf: Leaf = Leaf()
    spare: Leaf | None = None
    named: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)


def read(tree: dict) -> tuple[Root, list[str]]:
    problems: list[str] = []
    return read_group(Root, tree, "", problems), problems


def test_a_tree_is_read_with_defaults_for_what_is_missing():
    tree = {"parts": ["a"], "leaf": {"rate": 2}, "spare": {"size": 3}, "named": {"x": {"size": 4}, "y": {}}}
    named = {"x": Leaf(size=4), "y": Leaf()}
    assert read(tree) == (Root(parts=("a",), leaf=Leaf(rate=2.0), spare=Leaf(size=3), named=named), [])


@pytest.mark.parametrize("empty", [None, {}, {"size": None, "rate": None}])
def test_an_optional_group_without_a_value_is_none(empty):
    assert read({"spare": empty}) == (Root(), [])


@pytest.mark.parametrize("name", ["a.b", "1", "", "a-b"])
def test_a_name_that_no_dotted_key_can_hold_is_refused(name):
    assert read({"named": {name: {}}})[1] == [
        f"named: the name {name!r} must be letters, digits and underscores"
    ]


def test_paths_follow_the_schema_and_take_names_from_every_tree():
    trees = ({"named": {"x": {}}}, {"named": {"y": {}, "x": {}}}, {"named": 3}, {})
    assert key_paths(Root, *trees) == {
        "name": False,
        "parts": False,
        "leaf": True,
        "leaf.size": False,
        "leaf.rate": False,
        "spare": True,
        "spare.size": False,
        "spare.rate": False,
        "named": True,
        "named.x": True,
        "named.x.size": False,
        "named.x.rate": False,
        "named.y": True,
        "named.y.size": False,
        "named.y.rate": False,
    }


def test_only_keys_outside_the_schema_are_strange():
    tree = {"nam": "", "leaf": {"siz": 1, "size": 1}, "named": {"x": {"rat": 1}}, "parts": 3}
    assert unknown_keys(Root, tree) == [
        "nam: no such key; nearest: name",
        "leaf.siz: no such key; nearest: leaf.size",
        "named.x.rat: no such key; nearest: named.x.rate",
    ]


def test_a_key_like_no_other_is_answered_with_the_contents_of_its_group():
    known = key_paths(Root, {"named": {"x": {}}})
    assert unknown_key("named.x.qqqq", known) == "named.x.qqqq: no such key; named.x holds: size, rate"
    assert keys_in("", known) == ["name", "parts", "leaf", "spare", "named"]


def test_leaves_are_the_values_under_their_dotted_keys():
    tree = dataclasses.asdict(Root(named={"x": Leaf()}))
    assert dict(leaves(tree)) == {
        "name": "",
        "parts": (),
        "leaf.size": 1,
        "leaf.rate": 0.5,
        "spare": None,
        "named.x.size": 1,
        "named.x.rate": 0.5,
    }
