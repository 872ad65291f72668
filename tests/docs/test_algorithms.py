"""The page of algorithms names what there is, and its config lines pass the checks."""

import pathlib
import re

import pytest
import runs
from good_config import ROLES, config

from jaxflow.algorithms.advantages import ESTIMATORS
from jaxflow.algorithms.aggregate import AGGREGATIONS
from jaxflow.algorithms.kl import KL_LOSS_ESTIMATORS
from jaxflow.algorithms.objectives import OBJECTIVES
from jaxflow.checks import check
from jaxflow.config import Config, flatten
from jaxflow.dataflow import DATAFLOWS, PROMPTS

PAGE = (runs.ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
TABLE = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "`name=" in line]
STAGES = PAGE.partition("## The stages before")[2].partition("|---")[2].splitlines()[1:]
STAGES = [line for line in STAGES if line.startswith("| ")]
ROWS = {cells[0].removeprefix("| "): cells for cells in TABLE}


def settings(cells):
    """The config lines of a row, under their whole keys, with values of the schema's types."""
    known, found = flatten(Config()), {}
    for text in re.findall(r"`([\w.]+=[^`]+)`", cells[3]):
        key, _, value = text.partition("=")
        key = key if key in known else f"algorithm.{key}"
        kind = type(known[key])
        found[key] = {
            bool: lambda text: text == "true",
            tuple: lambda text: [text],
            int: int,
            float: float,
            str: str,
        }[kind](value)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_the_config_lines_of_every_row_pass_the_checks(name, tmp_path, monkeypatch):
    found = settings(ROWS[name])
    dataflow = DATAFLOWS[found["algorithm.name"]]
    monkeypatch.chdir(tmp_path)
    pathlib.Path("path.py").touch()
    roles = [role for role in dataflow.cast if role != "pretraining" or "ptx" in ROWS[name][2]]
    changes = {key.replace(".", "__"): value for key, value in found.items()}
    check(config(cluster__pools__main__roles=roles, **changes), 100, 8)
    # What the row says it needs beside the roles of all is what its dataflow casts.
    for role in ("critic", "cost_critic", "cost"):
        needed = re.search(rf"\b{role}\b", ROWS[name][2]) is not None
        assert (role in dataflow.cast) == needed, role


def test_every_estimator_objective_aggregation_kl_and_dataflow_has_its_place():
    asked = [settings(cells) for cells in TABLE]

    def named(key):
        return {found[key] for found in asked if key in found}

    own = {DATAFLOWS[name].estimators[0] for name in named("algorithm.name")}
    assert named("algorithm.name") == {name for name, flow in DATAFLOWS.items() if flow.batches == PROMPTS}
    assert named("algorithm.estimator") | own == set(ESTIMATORS)
    assert named("algorithm.objective") | {"vanilla", "dppo_kl"} == set(OBJECTIVES)
    for value in (*AGGREGATIONS, *KL_LOSS_ESTIMATORS):
        assert f"`{value}`" in PAGE, value
    stages = {name for name, flow in DATAFLOWS.items() if flow.batches != PROMPTS}
    assert stages == {line.split(" | ")[0].removeprefix("| ") for line in STAGES}
    assert set(ROLES) <= {role for dataflow in DATAFLOWS.values() for role in dataflow.cast}
