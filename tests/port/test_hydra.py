"""Hydra's grammar is read as Hydra reads it; what cannot be read names the place."""

import math

import pytest

from jaxflow.port import hydra
from jaxflow.types import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1024", 1024),
        ("1_000", 1000),
        ("-1", -1),
        ("1e-6", 1e-6),
        (".5", 0.5),
        ("0.9", 0.9),
        ("inf", math.inf),
        ("True", True),
        ("false", False),
        ("null", None),
        ("NULL", None),
        ("", ""),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("low_var_kl", "low_var_kl"),
        ("2.0_3.0", "2.0_3.0"),
        ("'1024'", "1024"),
        ('"a b, c"', "a b, c"),
        (r"'it\'s'", "it's"),
        ("[console,wandb]", ["console", "wandb"]),
        ("['console', \"wandb\"]", ["console", "wandb"]),
        ("[]", []),
        ("[1, [2, null]]", [1, [2, None]]),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
        ("${oc.env:HOME,/x}/data", "${oc.env:HOME,/x}/data"),
        ("a=b", "a=b"),
        ("no", "no"),  # a word to Hydra, whatever YAML makes of it
    ],
)
def test_values_mean_what_hydra_makes_of_them(text, value):
    parsed = hydra.parse_value(text, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("text", ["[a", "'a", "{a 1}", "a,b", "[a] b", "{a: 1"])
def test_values_outside_the_grammar_are_refused_with_the_override(text):
    with pytest.raises(UserError, match=r"the override ['\"]k="):
        hydra.override({}, [f"k={text}"])


def test_overrides_apply_in_order_and_deletions_leave_a_mark():
    given = {"a.b": 1, "a.c": 2, "d": 3, "e.f": 4}
    changed = hydra.override(
        given, ["a.b=5", "+x.y=[1]", "++d=null", "~e", "~a.c=2", "a.b=6", "g={h: {i: 7}}"]
    )
    gone = hydra.Deleted()
    assert changed == {"a.b": 6, "a.c": gone, "d": None, "e.f": gone, "x.y": [1], "g.h.i": 7}


def test_a_group_that_is_set_to_null_loses_its_keys():
    assert hydra.override({"a.b": 1, "a.c": 2}, ["a=null"]) == {"a": None}


@pytest.mark.parametrize("text", ["just_a_word", "--flag", "=1", "~"])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(UserError, match="expected key=value"):
        hydra.override({}, [text])


def test_interpolations_are_resolved_over_what_is_given_and_the_defaults(monkeypatch):
    monkeypatch.setenv("PORT_TEST_ROOT", "/data")
    values = {
        "trainer.dir": "runs/${trainer.name}/${.steps}",
        "trainer.name": "x",
        "trainer.steps": 3,
        "data.size": "${trainer.steps}",
        "data.deep.up": "${..size}",
        "data.select": "${oc.select:nothing.here, 512}",
        "data.selected": "${oc.select:trainer.steps, 512}",
        "data.root": "${oc.env:PORT_TEST_ROOT}/train",
        "data.other": "${oc.env:PORT_TEST_NOT_SET, ${trainer.name}}",
        "data.default": ["${rollout.n}"],
        "data.printed": "run_$(date ${x})",
    }
    resolved = hydra.resolve(values, {"rollout.n": 5})
    assert resolved["trainer.dir"] == "runs/x/3"
    assert resolved["data.size"] == 3 and resolved["data.deep.up"] == 3
    assert resolved["data.select"] == 512 and resolved["data.selected"] == 3
    assert resolved["data.root"] == "/data/train" and resolved["data.other"] == "x"
    assert resolved["data.default"] == [5]
    assert resolved["data.printed"] == values["data.printed"]


def test_interpolations_that_stand_for_nothing_are_all_named():
    with pytest.raises(UserError) as caught:
        hydra.resolve({"a": "${b}", "c": "${now:%Y}", "d": "${d}", "e": 1}, {})
    assert [line.split(" = ")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  • a",
        "  • c",
        "  • d",
    ]


def test_yaml_numbers_are_those_of_hydra_and_nothing_is_constructed(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("a:\n  lr: 1e-6\n  n: 5\n  none: null\n  empty: {}\n  list: [1, x]\nb: '1e-6'\n")
    assert hydra.read_yaml(file) == {
        "a.lr": 1e-6,
        "a.n": 5,
        "a.none": None,
        "a.empty": {},
        "a.list": [1, "x"],
        "b": "1e-6",
    }
    file.write_text("a: !!python/object/apply:os.system ['touch gone']\n")
    with pytest.raises(UserError, match="not YAML"):
        hydra.read_yaml(file)


@pytest.mark.parametrize(
    ("text", "message"), [("a: 1\na: 2\n", "given twice"), ("- a\n", "not keys"), ("a: [\n", "not YAML")]
)
def test_yaml_that_is_no_config_is_refused_with_its_file(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"config.yaml.*{message}"):
        hydra.read_yaml(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml"):
        hydra.read_yaml(tmp_path / "gone.yaml")
