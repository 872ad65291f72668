"""The page on checkpoints names what there is."""

import pathlib
import re
import shlex

from jaxflow.convert.__main__ import _parser
from jaxflow.models.families import FAMILIES

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def test_the_table_lists_every_architecture_that_is_read():
    table = PAGE.split("## What is read")[1].split("each also as")[0]
    named = set(re.findall(r"`(\w+ForCausalLM)`", table))
    assert named == {f"{family.name}ForCausalLM" for family in FAMILIES}


def test_every_command_line_of_the_page_is_one():
    lines = re.findall(r"^python -m jaxflow\.convert (.*?)(?:  +#.*)?$", PAGE, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        _parser().parse_args(shlex.split(line.replace("[", "").replace("]", "")))
