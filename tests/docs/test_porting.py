"""The page on porting says what the tables of jaxflow.port say, and its code runs."""

import dataclasses
import pathlib
import re
import sys
import types

import numpy as np
import pytest
import tiny

from jaxflow.config import AlgorithmConfig, Config, flatten
from jaxflow.port.report import table
from jaxflow.port.trl import TRL_GRPO, TRL_PPO
from jaxflow.port.verl import VERL
from jaxflow.types import TokenLogProbs
from jaxflow.workers.rule import policy_loss

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "porting.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


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


def test_the_page_s_objective_is_a_loss_of_tokens_under_the_config_s_aggregation(tmp_path):
    block = next(block for block in BLOCKS if "def soft" in block)
    (tmp_path / "soft.py").write_text(block)
    algorithm = AlgorithmConfig(objective=f"{tmp_path}/soft.py:soft", loss_aggregation="seq-mean-token-sum")
    loss = policy_loss(dataclasses.replace(Config(), algorithm=algorithm))
    batch = tiny.experience(rows=5, length=16)
    now = batch.actor_log_probs + 0.3 * batch.response_mask
    value, parts = loss(TokenLogProbs(now, np.zeros_like(now)), batch, tiny.counts_of(batch.response_mask))
    expected = np.where(batch.response_mask, -batch.advantages * np.tanh(np.exp(0.3) - 1.0), 0.0).sum() / 5
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert parts["actor/pg_clipfrac"] == 0.0 and algorithm.objective.endswith("soft.py:soft")
    line = next(block for block in BLOCKS if "config.algorithm.objective" in block)
    assert line.strip() == 'config.algorithm.objective = "soft.py:soft"'


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
