"""The page on porting says what the tables of jaxflow.port say, and its code runs."""

import pathlib
import re
import sys
import types

import pytest

from jaxflow.config import Config, flatten
from jaxflow.port.report import table
from jaxflow.port.trl import TRL_GRPO, TRL_PPO
from jaxflow.port.verl import VERL

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "porting.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("dialect", [VERL, TRL_GRPO, TRL_PPO], ids=lambda dialect: dialect.name)
def test_the_page_s_tables_are_those_that_translate(dialect):
    shown = re.search(rf"<!-- table: {dialect.name} -->\n(.*?)\n<!-- end -->", TEXT, re.DOTALL)
    assert shown is not None
    assert shown[1] == table(dialect, whole=False)


def test_every_key_of_jaxflow_s_on_the_page_is_in_its_schema():
    known = flatten(Config())
    sections = {key.partition(".")[0] for key in known}
    configs, _, _ = TEXT.partition("## A custom algorithm")  # from there on names are of Python
    prose = re.sub(r"<!-- table.*?<!-- end -->", "", configs, flags=re.DOTALL)
    named = [key for key in re.findall(r"`((?:\w+\.)+\w+)[ `]", prose) if key.partition(".")[0] in sections]
    theirs = [key for key in named if any(other.name.endswith(key) for other in VERL.keys)]
    assert len(named) >= 8 and [key for key in named if key not in {*known, *theirs}] == []


def test_files_that_the_page_links_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links and [link for link in links if not (PAGE.parent / link).exists()] == []


def test_a_reward_function_of_trl_s_answers_behind_verl_s_signature(monkeypatch):
    block = next(
        block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "my_rewards" in block
    )
    theirs = types.ModuleType("my_rewards")
    theirs.accuracy_reward = lambda completions, solution, **_: [
        float(one[0]["content"] == right) for one, right in zip(completions, solution, strict=True)
    ]
    monkeypatch.setitem(sys.modules, "my_rewards", theirs)
    names: dict = {}
    exec(block, names)
    assert names["compute_score"]("x", "4", "4") == 1.0 and names["compute_score"]("x", "5", "4") == 0.0
