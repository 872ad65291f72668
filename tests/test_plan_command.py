"""`--plan` answers without devices, in seconds; what a machine lacks is said with the way to the plan."""

import json
import pathlib
import time

import pytest

from jaxflow.main import main
from jaxflow.types import UserError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@pytest.mark.slow
def test_a_plan_of_128_gpus_is_printed_and_written_without_one(tmp_path, capsys):
    started = time.process_time()
    files = [f"--plan_json={tmp_path}/new/plan.json", f"--plan_timeline={tmp_path}/trace.json"]
    assert main(["jaxflow", f"--config={CONFIGS}/ppo_13b.py", "--plan", *files]) == 0
    assert time.process_time() - started < 20
    said = capsys.readouterr().out
    assert "128 × h100" in said
    assert "runners-up" in said
    plan = json.loads((tmp_path / "new" / "plan.json").read_text())
    assert plan["fits"] and len(plan["runners_up"]) == 3
    assert f"{plan['step_seconds']:.1f} s predicted" in said
    events = [event for event in json.loads((tmp_path / "trace.json").read_text()) if event["ph"] == "X"]
    calls = [event for event in events if event["cat"] != "step"]
    assert len(calls) == len(plan["spans"])
    step = next(event for event in events if event["cat"] == "step")
    assert step["dur"] == pytest.approx(1e6 * plan["step_seconds"], rel=1e-3)


def test_a_run_without_its_devices_ends_with_what_is_missing_and_the_plan(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"ask for 8 devices, but this machine has 0 .*--plan"):
        main(["jaxflow", f"--config={CONFIGS}/grpo_7b.py", f"--workdir={tmp_path}"])


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        main(
            ["jaxflow", f"--config={CONFIGS}/ppo_tiny.py", "--plan", f"--plan_json={tmp_path}/file/plan.json"]
        )


def test_a_plan_says_why_a_run_of_it_would_not_begin(capsys):
    odd = "--config.actor.minibatch_sequences=7"
    assert main(["jaxflow", f"--config={CONFIGS}/grpo_7b.py", "--plan", odd]) == 0
    said = capsys.readouterr().out
    assert "a run of this does not begin:" in said
    assert "actor.minibatch_sequences = 7" in said.split("does not begin:")[1]
    assert main(["jaxflow", f"--config={CONFIGS}/grpo_7b.py", "--plan"]) == 0
    assert "does not begin" not in capsys.readouterr().out
