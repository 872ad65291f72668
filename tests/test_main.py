"""The command line: what is refused and how, and whole runs as a user starts them."""

import json
import pathlib
import shutil
import signal
import sys

import jax
import pytest
from runs import CONFIG_FILE, STEPS, flags, rows, run_to_end

from jaxflow import main


@pytest.fixture
def command(monkeypatch, capsys):
    """`python -m jaxflow.main …` in this process: exit code, standard output and standard error."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # What a run would leave behind in this process, and its eight devices before a pool asks for fewer.
    cache = jax.config.jax_compilation_cache_dir
    jax.devices()
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def run(*arguments):
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the config file of the call before
        monkeypatch.setattr(sys, "argv", ["jaxflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.run()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    yield run
    jax.config.update("jax_compilation_cache_dir", cache)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def refused(result, *expected):
    """One message, its parts in order, and no trace."""
    code, out, err = result
    assert code == 2, err
    assert err.startswith("error: ") and err.count("error: ") == 1
    assert "Traceback" not in out + err
    place = 0
    for part in expected:
        assert part in err[place:], err
        place = err.index(part, place)


def test_a_config_must_be_named(command):
    refused(command(), "--config=FILE.py is missing", "configs/ppo_tiny.py")


def test_a_missing_config_file_is_named(command):
    refused(command("--config=no/such.py"), "--config=no/such.py: no such file")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(:", "broken.py:1: reading the config failed: SyntaxError"),
        ("\nimport not_a_module", "broken.py:2: reading the config failed: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0", "broken.py:2: reading the config failed: ZeroDivisionError"),
        ("x = 1", "has no attribute 'get_config'"),
        (
            "def get_config():\n    return 3",
            "broken.py: get_config() must return an ml_collections ConfigDict",
        ),
    ],
)
def test_a_broken_config_file_is_refused_with_its_line(command, tmp_path, text, expected):
    path = tmp_path / "broken.py"
    path.write_text(text)
    refused(command(f"--config={path}"), expected)


def test_misspelt_keys_are_refused_with_the_nearest_names(command):
    result = command(f"--config={CONFIG_FILE}", "--config.run.total_step=3", "--config.actor.lr=1")
    refused(result, "2 mistakes", "nearest: run.total_steps", "nearest: actor.optimizer.learning_rate")


def test_contradictions_are_reported_together(command, tmp_path):
    changes = {
        "cluster.pools.main.devices_per_host": 3,
        "actor.minibatch_sequences": 7,
        "algorithm.loss_aggregation": "mean",
    }
    result = command(*flags(tmp_path / "run", **changes))
    refused(result, "3 mistakes", "loss_aggregation", "devices_per_host 3", "minibatch_sequences = 7")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--config.run.total_steps=many",), "total_steps=many"),
        (("--nonsense=1",), "nonsense"),
        (("stray",), "nothing is known of stray"),
    ],
)
def test_a_mistaken_argument_is_named(command, arguments, expected):
    refused(command(f"--config={CONFIG_FILE}", *arguments), expected)


def test_print_config_prints_json_and_batch_algebra_and_starts_nothing(command, tmp_path):
    code, out, err = command(*flags(tmp_path / "run"), "--print_config")
    assert code == 0 and err == ""
    tree, end = json.JSONDecoder().raw_decode(out)
    assert tree["actor"]["model"]["width"] == 32 and tree["run"]["total_steps"] == STEPS
    assert "8 prompts × 2 samples = 16 sequences" in out[end:]
    assert not (tmp_path / "run").exists()


def test_help_says_how_to_start(command):
    code, out, _ = command("--help")
    assert code == 0 and "--config=configs/ppo_tiny.py" in out and "Exit codes" in out


def words_tokenizer(folder):
    """A Hugging Face tokenizer directory of eight words and the end token."""
    import tokenizers
    import transformers

    names = ["<end>", "<unknown>", "one", "two", "three", "four", "five", "six", "plus", "equals"]
    model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unknown>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>"
    )
    fast.save_pretrained(folder)


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """Rows, tokenizer and reward of a user's own; returns the config's changes and the JSONL file."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    words_tokenizer(tmp_path / "tokenizer")
    lines = [{"prompt": f"one plus {word} equals", "ground_truth": word} for word in ("two", "six") * 8]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    verl = [
        {"prompt": "two plus two equals", "reward_model": {"ground_truth": "four"}, "data_source": "sums"}
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(verl * 3), tmp_path / "held.parquet")
    (tmp_path / "reward.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return {'score': float(len(solution_str.split())), 'acc': float(ground_truth in solution_str)}\n"
    )
    return {
        "data.train_files": f"('{tmp_path}/train.jsonl',)",
        "data.validation_files": f"('{tmp_path}/held.parquet',)",
        "data.tokenizer": str(tmp_path / "tokenizer"),
        "reward.function": f"{tmp_path}/reward.py:compute_score",
        "warm_start.steps": 0,
        "cluster.launcher": "inprocess",
        "run.total_steps": 2,
    }


@pytest.mark.slow
def test_own_files_tokenizer_and_reward_train(command, own_data, tmp_path):
    code, out, err = command(*flags(tmp_path / "run", **own_data))
    assert code == 0, err
    assert "vocabulary 10" in out
    written = rows(tmp_path / "run")
    assert [row["training/global_step"] for row in written] == [0, 1, 2]
    assert "val-core/sums/acc/mean@1" in written[0] and written[1]["critic/score/max"] > 0


def test_a_missing_data_file_is_named(command, own_data, tmp_path):
    changes = own_data | {"data.train_files": "('no_such.jsonl',)"}
    refused(command(*flags(tmp_path / "run", **changes)), "data.train_files: no such file: no_such.jsonl")


def test_a_malformed_row_is_named_by_file_and_line(command, own_data, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text() + '{"prompt": "one", \n')
    refused(command(*flags(tmp_path / "run", **own_data)), f"{path}:17: not a JSON object")


def test_an_empty_data_set_counts_its_reasons(command, own_data, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": " ", "ground_truth": "1"}\n' + path.read_text())
    result = command(*flags(tmp_path / "run", **own_data, **{"data.max_prompt_tokens": 2}))
    refused(result, "no prompt is left of 17 rows", "dropped 1: ", "dropped 16: ")


def test_an_overlong_prompt_can_be_an_error(command, own_data, tmp_path):
    changes = {"data.max_prompt_tokens": 2, "data.overlong_prompts": "error"}
    result = command(*flags(tmp_path / "run", **own_data, **changes))
    refused(result, "train.jsonl:1: a prompt of 4 tokens, the limit is 2")


@pytest.mark.parametrize(
    ("text", "function", "expected"),
    [
        (None, "compute_score", "no such file"),
        ("x = 1\n", "compute_score", "compute_score"),
        ("x = 1\ndef compute_score(:\n", "compute_score", "reward.py:2: importing the reward file failed"),
    ],
)
def test_a_reward_file_that_cannot_be_used_is_refused(command, tmp_path, text, function, expected):
    path = tmp_path / "reward.py"
    if text is not None:
        path.write_text(text)
    changes = {"reward.function": f"{path}:{function}", "cluster.launcher": "inprocess"}
    refused(command(*flags(tmp_path / "run", **changes)), expected)
    assert not (tmp_path / "run").exists()


def test_an_unwritable_workdir_is_named(command, tmp_path):
    (tmp_path / "file").touch()
    refused(command(*flags(tmp_path / "file" / "run")), "file", "could not be written")


def test_a_workdir_in_use_is_refused(command, tmp_path):
    directory = main.RunDirectory(tmp_path, 1)
    directory.acquire()
    try:
        refused(command(*flags(tmp_path)), "another run is writing here (pid")
    finally:
        directory.release()


def test_a_weights_directory_that_is_none_is_refused(command, tmp_path):
    (tmp_path / "weights").mkdir()
    changes = {"actor.weights": str(tmp_path / "weights"), "cluster.launcher": "inprocess"}
    refused(command(*flags(tmp_path / "run", **changes)), "weights")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the micro config in a process of its own."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    ended = run_to_end(*flags(workdir, **{"cluster.launcher": "inprocess", "checkpoint.every_steps": 2}))
    assert ended.code == 0, ended.errors
    return workdir, ended


@pytest.mark.slow
def test_a_run_is_quiet_on_standard_error_and_plain_on_standard_output(finished):
    workdir, ended = finished
    assert ended.errors == "" and "\x1b" not in ended.output
    assert f"workdir     {workdir}" in ended.output
    assert "the same command with this --workdir continues it" in ended.output


@pytest.mark.slow
def test_a_finished_run_has_nothing_to_do(finished, command):
    before = rows(finished[0])
    code, out, err = command(*flags(finished[0], **{"cluster.launcher": "inprocess"}))
    assert code == 0 and err == "" and f"nothing to do: all {STEPS} steps are done" in out
    assert rows(finished[0]) == before


@pytest.mark.slow
def test_resume_can_be_refused(finished, command):
    refused(command(*flags(finished[0], **{"checkpoint.resume": "never"})), "resume is never")


@pytest.mark.slow
def test_another_model_is_refused_and_the_saved_config_kept(finished, command):
    before = (finished[0] / "config.json").read_text()
    changes = {"actor.model.width": 64, "critic.lora.rank": 2, "run.total_steps": 9}
    result = command(*flags(finished[0], **changes))
    refused(result, "holds a run of another model", "actor.model.width: 32 → 64", "critic.lora.rank: 0 → 2")
    assert (finished[0] / "config.json").read_text() == before


@pytest.mark.slow
def test_changed_keys_are_listed_and_a_damaged_checkpoint_is_passed_over(finished, command):
    workdir, _ = finished
    damaged = next((workdir / "checkpoints/step_00000004/actor").rglob("d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    changes = {"cluster.launcher": "inprocess", "run.total_steps": 5, "checkpoint.every_steps": 2}
    code, out, err = command(*flags(workdir, **changes))
    assert code == 0, err
    assert "warning: changed since: run.total_steps: 4 → 5" in out
    assert f"warning: checkpoint of step 4 passed over: {damaged}" in out
    assert "resumed after step 2" in out and "data position 16 prompts, 3 steps left" in out
    assert [row["training/global_step"] for row in rows(workdir)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_failure_is_one_line_with_its_trace_in_the_workdir(command, tmp_path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("no rows")

    monkeypatch.setattr("jaxflow.workers.reward.score_rows", broken)
    code, out, err = command(*flags(tmp_path, **{"cluster.launcher": "inprocess"}))
    assert code == 1 and "Traceback" not in out + err
    message, again, place = err.splitlines()
    assert message.startswith("error: reward.judge_validation failed in pool main, process ")
    assert message.endswith(": ZeroDivisionError: no rows") and str(tmp_path / "error.log") in place
    assert again == "it came again after a restart"
    assert "in broken" in (tmp_path / "error.log").read_text()


@pytest.mark.slow
def test_garbage_in_the_folder_of_compiled_programs_stops_nothing(tmp_path):
    changes = {"cluster.launcher": "inprocess", "run.total_steps": 1, "warm_start.steps": 0}
    assert run_to_end(*flags(tmp_path / "a", **changes)).code == 0
    folder = tmp_path / "cache/jaxflow/programs"
    folder.mkdir(parents=True)
    for program in pathlib.Path(jax.config.jax_compilation_cache_dir).glob("*-cache"):
        shutil.copy(program, folder)
    damaged = list(folder.glob("jit_create-*-cache"))
    assert damaged  # one of them is the program that the run begins with
    for program in damaged:
        program.write_bytes(b"garbage")
    ended = run_to_end(*flags(tmp_path / "b", **changes), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert ended.code == 0, ended.errors
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
