"""The page of learning curves says what is kept of the runs, and the runs are those that the script would start."""

import json
import math
import runpy

import pytest

from experiments import curve_runs as runs
from experiments import learning_curves as curves
from jaxflow.config import from_config_dict, override
from jaxflow.data import wishes

PAGE = (runs.HERE / "learning_curves.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "seed"), runs.everything())
def test_what_is_kept_was_run_with_the_settings_that_stand_in_the_script(name, seed):
    assert runs.kept(name, seed)


@pytest.mark.parametrize("name", runs.RUNS)
def test_every_key_of_a_run_is_one_that_its_config_has(name):
    run = runs.RUNS[name]
    values = runpy.run_path(str(runs.HERE.parent / "configs" / f"{run.config}.py"))["get_config"]()
    assert override(values, [f"--config.{key}={value}" for key, value in run.settings.items()]) == []
    from_config_dict(values)


def test_the_page_holds_the_tables_of_what_is_kept():
    for mark, report in curves.reports().items():
        assert f"<!-- {mark} -->\n{report}\n<!-- end -->" in PAGE, mark


@pytest.mark.parametrize("name", runs.REVERSAL)
def test_every_algorithm_begins_at_the_same_policy_and_reaches_enough(name):
    for seed in runs.SEEDS["reversal"]:
        told = curves.learned(name, seed, curves.ACCURACY)
        assert told.start == curves.learned("grpo", seed, curves.ACCURACY).start < 0.5
        assert told.steps is not None and told.end >= curves.ENOUGH


@pytest.mark.parametrize(
    ("accuracies", "steps", "tokens"), [((0.5, 0.95, 0.9), 2, 3.0), ((0.5, 0.8), None, None)]
)
def test_tokens_are_those_of_all_steps_until_it_was_enough(tmp_path, monkeypatch, accuracies, steps, tokens):
    monkeypatch.setattr(runs, "STORE", tmp_path)
    rows = [
        {"training/global_step": i + 1.0, "perf/total_num_tokens": 1e6 * (i + 1), curves.ACCURACY: accuracy}
        for i, accuracy in enumerate(accuracies)
    ]
    runs.keep("ppo", 7, rows)
    told = curves.learned("ppo", 7, curves.ACCURACY)
    assert (told.start, told.end, told.steps, told.tokens) == (0.5, accuracies[-1], steps, tokens)


def test_a_run_kept_under_other_settings_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "STORE", tmp_path)
    runs.keep("ppo", 0, [])
    file = tmp_path / "ppo-0.jsonl"
    described = json.loads(file.read_text())
    assert runs.kept("ppo", 0) == [] and runs.kept("ppo", 1) is None
    described["settings"]["run.total_steps"] += 1
    file.write_text(json.dumps(described) + "\n")
    assert runs.kept("ppo", 0) is None


def test_what_is_attainable_lies_between_all_wishes_and_none_that_is_harmful():
    harmless = [set(wished) - set(wishes.HARMFUL) for wished in wishes.prompts()]
    least = sum(map(wishes.help_of, wishes.prompts(), map("".join, harmless))) / len(harmless)
    assert curves.attainable_help(math.inf) == 1.0
    assert curves.attainable_help(-0.5) == pytest.approx(least)
    assert least < curves.attainable_help(0.0) < 1.0
