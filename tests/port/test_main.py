"""The command line: a config in, a file and a report out; nothing is written over, nothing silently guessed."""

import runpy

import pytest
from port.material import rows

from jaxflow.config import from_config_dict
from jaxflow.port.__main__ import main
from jaxflow.port.inputs import count_rows
from jaxflow.types import UserError

SCRIPT = """#!/bin/bash
set -x
MODEL=${MODEL:-/no/model}
python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=gae \\
    data.train_files=$DATA/train.parquet \\
    data.train_batch_size=64 \\
    actor_rollout_ref.model.path=$MODEL \\
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \\
    trainer.project_name=maths trainer.experiment_name=one \\
    trainer.total_epochs=3 $@
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path))
    rows(tmp_path / "train.parquet", 130)
    (tmp_path / "run.sh").write_text(SCRIPT)
    return tmp_path


def test_a_script_with_keys_on_top_becomes_a_file_and_a_report(folder, capsys):
    assert main(["verl", "run.sh", "actor_rollout_ref.rollout.n=4", "trainer.total_epochs=5"]) == 0
    shown = capsys.readouterr().out
    config = from_config_dict(runpy.run_path("run.py")["get_config"]())
    assert (config.run.total_steps, config.actor.minibatch_sequences) == (10, 128)
    assert shown.startswith("verl → jaxflow: 9 keys given")
    assert "actor.minibatch_sequences = 128  (32 prompts × 4 samples)" in shown
    assert "python -m jaxflow.main --config=run.py --workdir=runs/maths/one" in shown
    lines = [line for line in shown.splitlines() if line.startswith("  ") and not line.startswith("      ")]
    given = (
        "algorithm.adv_estimator",
        "data.train_files",
        "actor_rollout_ref.rollout.n",
        "trainer.total_epochs",
    )
    assert all(sum(line.startswith(f"  {key} = ") for line in lines) == 1 for key in given)


def test_the_file_is_there_before_a_reader_of_the_report_can_leave(folder, monkeypatch):
    def gone(*words):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(BrokenPipeError):
        main(["verl", "run.sh"])
    assert (folder / "run.py").exists()


def test_a_yaml_file_with_overrides_becomes_the_same_run(folder):
    (folder / "own.yaml").write_text(
        "defaults:\n  - ppo_trainer\n  - _self_\n"
        "data:\n  train_files: ${oc.env:DATA}/train.parquet\n  train_batch_size: 64\n"
        "algorithm:\n  adv_estimator: gae\n"
        "actor_rollout_ref:\n  model: {path: /no/model}\n  actor: {ppo_mini_batch_size: 16}\n"
        "trainer:\n  total_epochs: 3\n  project_name: maths\n  experiment_name: one\n"
    )
    main(["verl", "run.sh", "--out=script.py"])
    main(["verl", "own.yaml", "actor_rollout_ref.actor.ppo_mini_batch_size=32", "--out", "yaml.py"])
    script, yaml = (
        from_config_dict(runpy.run_path(f"{name}.py")["get_config"]()) for name in ("script", "yaml")
    )
    assert script == yaml


def test_a_script_that_names_a_yaml_file_is_read_on_top_of_it(folder):
    (folder / "own.yaml").write_text(
        "defaults: [ppo_megatron_trainer]\ntrainer: {total_epochs: 2, save_freq: 7}\n"
    )
    main(
        [
            "verl",
            "own.yaml",
            "--command",
            "python3 -m verl.trainer.main_ppo --config-name=own trainer.save_freq=9",
            "--rows=4096",
        ]
    )
    text = (folder / "own.py").read_text()
    assert "From own.yaml and a command line" in text and "Not ported" not in text
    assert "config.checkpoint.every_steps = 9" in text and "Megatron" in text


def test_a_command_line_is_enough_and_rows_can_be_said(folder, capsys):
    command = "python3 -m verl.trainer.main_ppo data.train_batch_size=10 trainer.total_epochs=2"
    main(["verl", "--command", command, "--rows=105", "--out=c.py"])
    assert from_config_dict(runpy.run_path("c.py")["get_config"]()).run.total_steps == 20
    assert "2 epochs × ⌊105 rows / 10 prompts⌋" in capsys.readouterr().out


def test_what_is_not_ported_stands_in_the_file(folder):
    main(["verl", "run.sh", "trainer.logger=wandb", "actor_rollout_ref.actor.optim.optimizer=\"a'''b\""])
    text = (folder / "run.py").read_text()
    assert "# Not ported: trainer.logger = wandb" in text
    assert from_config_dict(runpy.run_path("run.py")["get_config"]())


def test_files_are_not_written_over_unless_asked(folder):
    (folder / "run.py").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        main(["verl", "run.sh"])
    assert (folder / "run.py").read_text() == "mine"
    main(["verl", "run.sh", "--force"])
    assert (folder / "run.py").read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["openrlhf", "x.yaml"], "verl or trl"),
        (["verl"], "give a CONFIG"),
        (["verl", "a.yaml", "b.yaml"], "give a CONFIG"),
        (["verl", "run.sh", "--command", "main_ppo"], "give a CONFIG"),
        (["verl", "gone.yaml"], r"gone\.yaml"),
        (["verl", "run.sh", "data.train_batchsize=1"], "nearest: data.train_batch_size"),
        (["verl", "run.sh", "--rows=many"], "a number of prompts"),
        (["verl", "run.sh", "--out"], "needs a value"),
        (["verl", "--command", "python train.py"], "no command that starts verl"),
        (["trl", "dpo"], "followed by grpo or ppo"),
        (["trl", "grpo", "--betta", "0.1"], "nearest: beta"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_with_the_reason(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)
    assert not list(folder.glob("*.py"))


def test_help_and_tables_are_printed(capsys):
    assert main(["--help"]) == 0 and "python -m jaxflow.port verl CONFIG.yaml" in capsys.readouterr().out
    assert main(["verl", "--table"]) == 0
    assert "| `algorithm.gamma` | `1.0` | `algorithm.discount`: the same |" in capsys.readouterr().out
    assert main(["trl", "--table"]) == 0
    assert capsys.readouterr().out.count("| its default | jaxflow |") == 2


def test_rows_are_counted_in_files_that_are_there(tmp_path):
    parquet = rows(tmp_path / "a.parquet", 7)
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert count_rows([parquet, str(lines)]) == 9
    assert count_rows([parquet, str(tmp_path / "gone.parquet")]) is None
    assert count_rows([]) is None
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(UserError, match=r"c\.parquet: its rows cannot be counted"):
        count_rows([str(tmp_path / "c.parquet")])
