"""Algorithms found by name, built in or in a user's file, and the cast each is given."""

import re
import textwrap

import fakes
import pytest

from jaxflow.dataflow import BUILT_IN_ROLES, DATAFLOWS, Dataflow, load_dataflow
from jaxflow.types import UserError


class Referee:
    """A role of one's own."""


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_built_in_algorithms_are_found_by_their_names():
    assert {name: load_dataflow(name) for name in DATAFLOWS} == dict(DATAFLOWS)


def test_a_step_is_given_its_cast_and_nobody_else():
    seen = {}

    def step(roles, prompts):
        seen.update(vars(roles))
        return [prompts]

    groups, log = fakes.fake_groups((*BUILT_IN_ROLES, "referee"))
    prompts = fakes.FakeFuture("prompts", log)
    dataflow = Dataflow(step, cast=("actor", "reward", "referee"), roles={"referee": Referee})
    assert dataflow(groups, prompts) == [prompts]
    assert seen == {name: groups[name] for name in ("actor", "reward", "referee")}


@pytest.mark.parametrize(
    ("cast", "roles", "complaint"),
    [
        (("actor", "actor", "reward"), {}, "names a role twice"),
        (("actor", "reward", "referee"), {}, "no class for referee; .*built-in roles: actor, critic"),
        (("actor", "reward"), {"referee": Referee}, "classes for referee, which the cast does not name"),
        (("actor", "critic"), {}, "lacks reward"),
        (("referee",), {"referee": Referee}, "lacks actor, reward"),
    ],
)
def test_a_cast_that_cannot_play_is_refused(cast, roles, complaint):
    with pytest.raises(ValueError, match=complaint):
        Dataflow(lambda roles, prompts: [], cast, roles)


@pytest.mark.parametrize("optional", ["reward", "critic"])
def test_a_role_that_cannot_be_absent_is_not_optional(optional):
    with pytest.raises(ValueError, match="cannot be optional"):
        Dataflow(lambda roles, prompts: [], ("actor", "reward", "reference"), optional=(optional,))


def test_an_algorithm_may_bring_its_own_class_for_a_built_in_role():
    dataflow = Dataflow(lambda roles, prompts: [], ("actor", "reward"), {"reward": Referee})
    assert dataflow.roles["reward"] is Referee


MINE = """
    from jaxflow.dataflow import Dataflow

    def step(roles, prompts):
        return []

    MINE = Dataflow(step, cast=CAST)
"""


def test_a_user_s_algorithm_is_found_in_its_file(tmp_path):
    place = write(tmp_path, MINE.replace("CAST", '("actor", "reward")')) + ":MINE"
    found = load_dataflow(place)
    assert found.cast == ("actor", "reward") and found.step(None, None) == []
    assert load_dataflow(place) is found


def test_a_wrong_cast_in_a_user_s_file_is_named_by_its_line(tmp_path):
    file = write(tmp_path, MINE.replace("CAST", '("actor", "judge")'))
    with pytest.raises(UserError, match=f"^{re.escape(file)}:7: .*no class for judge"):
        load_dataflow(f"{file}:MINE")


def test_what_is_no_algorithm_is_refused(tmp_path):
    file = write(tmp_path, "def step(roles, prompts): return []")
    with pytest.raises(UserError, match=r"'step' is a function; algorithm\.name must name a Dataflow"):
        load_dataflow(f"{file}:step")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pp0", r"algorithm\.name = 'pp0': did you mean 'ppo'\? it is one of: ppo.*; or path\.py:NAME"),
        ("sorcery", r"algorithm\.name = 'sorcery': it is one of"),
        ("absent.py:MINE", r"algorithm file 'absent\.py' does not exist; check algorithm\.name"),
        ("absent.py:", r"algorithm\.name is 'absent\.py:'; write it as path\.py:name"),
    ],
)
def test_a_name_that_is_no_algorithm_is_refused_with_what_could_be_meant(name, complaint):
    with pytest.raises(UserError, match=complaint):
        load_dataflow(name)
