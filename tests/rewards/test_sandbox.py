"""Reward code in processes of its own: whatever it does costs the row that did it, and nothing else."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxflow.rewards.function import read_function
from jaxflow.rewards.sandbox import Sandbox
from jaxflow.rewards.sandbox_guard import PROCESSES_ALLOWED
from jaxflow.rewards.sandbox_process import Limits
from jaxflow.rewards.verdict import Case, Failure, Verdict
from jaxflow.types import UserError

# Patience for what answers, however busy the machine is; little of it for what never does.
PATIENT = Limits(processes=2, timeout_seconds=60.0, memory_megabytes=256)
HASTY = Limits(processes=2, timeout_seconds=1.5, memory_megabytes=256)

# What a row's response says is done.
OBEDIENT = """
import ctypes, mmap, os, signal, subprocess, sys, threading, time

def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", MARK])
        os._exit(0)
    os.wait()

def leave_processes():
    subprocess.Popen(["sleep", MARK], start_new_session=True)
    daemon()

def close_everything():
    os.closerange(0, 256)

def compute_score(data_source, solution_str, ground_truth, extra_info):
    exec(solution_str, globals())
    return {"score": len(solution_str), "acc": 1}
"""


def sandbox_of(tmp_path, text, limits=PATIENT, arguments="", batch=False, name="compute_score"):
    path = tmp_path / "reward.py"
    path.write_text(textwrap.dedent(text))
    return Sandbox(read_function(f"{path}:{name}", arguments, batch), limits)


def case(solution, ground_truth="1", extra_info=None):
    return Case("source", solution, ground_truth, {} if extra_info is None else extra_info)


def processes_with(word):
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def count_becomes(count, word, seconds):
    """Wait until so many processes have this word in their command line."""
    end = time.monotonic() + seconds
    while len(processes_with(word)) != count and time.monotonic() < end:
        time.sleep(0.01)
    return len(processes_with(word)) == count


@pytest.fixture(scope="module")
def mark():
    return f"{1000 + os.getpid()}.125"


def obeying(folder, mark, limits):
    sandbox = sandbox_of(folder, OBEDIENT.replace("MARK", repr(mark)), limits)
    sandbox.check()
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def obedient(tmp_path_factory, mark):
    yield from obeying(tmp_path_factory.mktemp("obedient"), mark, PATIENT)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory, mark):
    yield from obeying(tmp_path_factory.mktemp("hasty"), mark, HASTY)


@pytest.mark.parametrize(
    "done",
    [
        "time.sleep(600)",
        "while True: pass",
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); time.sleep(600)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_a_row_that_does_not_end_costs_its_time_alone(hasty, done):
    told = hasty.judge([case("1"), case(done), case("22"), case("333")])
    assert [told[i] for i in (0, 2, 3)] == [Verdict(float(n), 1.0, {}) for n in (1, 2, 3)]
    assert told[1].reason == "timeout" and "no answer within 1.5 s" in told[1].message


@pytest.mark.parametrize(
    ("done", "reason", "message"),
    [
        (
            "print('last words', flush=True); os._exit(3)",
            "crash",
            "exit code 3; its last output: 'last words'",
        ),
        ("ctypes.string_at(0)", "crash", "killed by SIGSEGV; its last output: 'Fatal Python error: Segm"),
        ("os.abort()", "crash", "killed by SIGABRT"),
        ("x = bytearray(10 * 2**30)", "crash", "MemoryError"),
        ("mmap.mmap(-1, 10 * 2**30)", "error", "Cannot allocate memory"),
        ("open('/dev/shm/' + MARKED, 'wb').truncate(2**30)", "error", "File too large"),
        ("close_everything()", "crash", ""),
        # Signal 0 does nothing where it is let through.
        ("os.kill(-1, 0)", "error", "PermissionError"),
        ("os.kill(TRAINER, 0)", "error", "PermissionError"),
        ("os.kill(os.getppid(), 0)", "error", "PermissionError"),
        ("os.killpg(os.getppid(), 0)", "error", "PermissionError"),
        ("subprocess.run(['sh', '-c', 'kill -0 TRAINER'], check=True)", "error", "CalledProcessError"),
        ("sys.exit(0)", "error", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("(f := lambda: f())()", "error", "RecursionError"),
        ("input()", "error", "EOFError"),
    ],
)
def test_a_row_that_breaks_costs_that_row_alone(obedient, mark, done, reason, message):
    told = obedient.judge(
        [
            case("1"),
            case(done.replace("MARKED", repr(mark)).replace("TRAINER", str(os.getpid()))),
            case("22"),
            case("333"),
        ]
    )
    pathlib.Path("/dev/shm", mark).unlink(missing_ok=True)
    assert [told[i] for i in (0, 2, 3)] == [Verdict(float(n), 1.0, {}) for n in (1, 2, 3)]
    assert isinstance(told[1], Failure) and told[1].reason == reason and message in told[1].message, told[1]


def test_who_starts_too_many_processes_is_ended_before_its_time(tmp_path):
    text = f"""
    import os, time
    def compute_score(solution_str, **row):
        for _ in range({4 * PROCESSES_ALLOWED}):
            if os.fork() == 0:
                time.sleep(60)
        time.sleep(60)
    """
    sandbox = sandbox_of(tmp_path, text)
    (told,) = sandbox.judge([case("")])
    assert told.reason == "crash" and f"processes, the limit is {PROCESSES_ALLOWED}" in told.message
    sandbox.close()


def test_what_a_row_starts_it_may_also_end(obedient):
    done = "p = subprocess.Popen(['sleep', '60'], start_new_session=True); os.killpg(p.pid, 9); p.wait()"
    assert obedient.judge([case(done)]) == [Verdict(float(len(done)), 1.0, {})]


def test_every_limit_is_set(obedient):
    limits = ["DATA", "AS", "FSIZE", "CPU", "CORE"]
    text = f"import resource; L = [resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[0] for n in {limits}]"
    check = "; assert 2**28 < L[0] < 2**30 and L[1] < 2**32 and L[2] == 2**28 and 0 < L[3] < 1000 and L[4] == 0, L"
    (told,) = obedient.judge([case(text + check)])
    assert isinstance(told, Verdict), told


def test_rows_that_all_break_each_cost_themselves(obedient):
    told = obedient.judge([case("os._exit(1)")] * 5)
    assert [verdict.reason for verdict in told] == ["crash"] * 5
    assert all("exit code 1" in verdict.message for verdict in told)


def test_a_flood_of_output_neither_blocks_nor_stays_in_memory(tmp_path):
    sandbox, flood = sandbox_of(tmp_path, OBEDIENT), "[print('x' * 2**20) for _ in range(100)]"
    assert sandbox.judge([case(flood)]) == [Verdict(float(len(flood)), 1.0, {})]
    (failed,) = sandbox.judge([case(f"{flood}; print('end', flush=True); os._exit(1)")])
    assert failed.message.endswith("xx\\nend'") and len(failed.message) < 1000
    sandbox.close()


def test_a_forked_child_says_nothing_and_keeps_nothing_open(obedient):
    fork = "os.fork()"
    assert obedient.judge([case(fork), case("22")] * 3) == [
        Verdict(float(n), 1.0, {}) for n in (len(fork), 2) * 3
    ]


def test_whoever_is_killed_takes_all_that_it_started_along(hasty, obedient, mark):
    (told,) = hasty.judge([case("leave_processes(); time.sleep(600)")])
    assert told.reason == "timeout" and processes_with(mark) == []
    (told,) = obedient.judge([case("leave_processes(); os._exit(0)")])
    assert told.reason == "crash" and processes_with(mark) == []


def test_a_trainer_that_is_killed_leaves_no_process(tmp_path, mark):
    word = f"{mark}5"
    (tmp_path / "reward.py").write_text(OBEDIENT.replace("MARK", repr(word)))
    text = f"""
    from jaxflow.rewards.function import read_function
    from jaxflow.rewards.sandbox import Sandbox
    from jaxflow.rewards.sandbox_process import Limits
    from jaxflow.rewards.verdict import Case
    sandbox = Sandbox(read_function("{tmp_path}/reward.py:compute_score", "", False), Limits(1, 60.0, 256))
    done = "leave_processes(); time.sleep(60)"
    sandbox.judge([Case("", done, "", {{}})])
    """
    trainer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)])
    try:
        # Two that call themselves so: a forked process does it some time after its parent has gone on.
        assert count_becomes(2, word, seconds=60.0)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    assert count_becomes(0, word, seconds=5.0)


def test_rows_are_scored_side_by_side(tmp_path):
    """Each of as many rows as there are processes waits until all of them have begun."""
    sandbox = sandbox_of(
        tmp_path,
        f"""
        import pathlib, time
        begun = pathlib.Path({str(tmp_path / "begun")!r})
        def compute_score(solution_str, **row):
            (begun / solution_str).touch()
            while len(list(begun.iterdir())) < 8:
                time.sleep(0.01)
            return 1.0
        """,
        Limits(8, 60.0, 256),
    )
    (tmp_path / "begun").mkdir()
    assert sandbox.judge([case(str(row)) for row in range(8)]) == [Verdict(1.0, 1.0, {})] * 8
    sandbox.close()


def test_a_thousand_simple_rows_take_less_than_a_second_and_keep_their_order(tmp_path):
    sandbox = sandbox_of(tmp_path, "def compute_score(solution_str, **row): return int(solution_str)")
    sandbox.check()
    took = []
    while not took or (took[-1] > 1 and len(took) < 30):  # a busy machine has its moments
        started = time.monotonic()
        told = sandbox.judge([case(str(i)) for i in range(1000)])
        took.append(time.monotonic() - started)
        assert [verdict.score for verdict in told] == list(range(1000))
    assert took[-1] < 1, took
    sandbox.close()


def test_a_row_arrives_as_it_is_and_nothing_of_ours_is_loaded(tmp_path):
    row = {"n": [1, [2.5, None]], "text": "ü\ud800\x00", "deep": {"a": {"b": True}}, "long": "x" * 300_000}
    sandbox = sandbox_of(
        tmp_path,
        f"""
        import sys
        def compute_score(data_source, solution_str, ground_truth, extra_info, strict=False):
            expected = {row!r}
            return {{
                "score": (data_source, solution_str, ground_truth, extra_info) == ("source", "s", expected, expected),
                "acc": strict,
                "jax": "jax" in sys.modules or "numpy" in sys.modules,
            }}
        """,
        PATIENT,
        '{"strict": true}',
    )
    assert sandbox.judge([case("s", row, row)]) == [Verdict(1.0, 1.0, {"jax": 0.0})]
    assert sandbox.judge([]) == []
    sandbox.close()


@pytest.mark.parametrize(
    "signature",
    [
        "data_source, solution_str, ground_truth, extra_info=None",
        "solution_str, ground_truth, **others",
        "data_source, solution_str, ground_truth, extra_info=None, strict=True",
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_verls_signatures_are_called_by_name(tmp_path, kind, signature):
    text = f"{kind} compute_score({signature}):\n    return float(solution_str + ground_truth)"
    sandbox = sandbox_of(tmp_path, text)
    assert sandbox.judge([case("4", "2")]) == [Verdict(42.0, 42.0, {})]
    sandbox.close()


BATCH = """
import time
def compute_score(data_sources, solution_strs, ground_truths, extra_infos, scale=1):
    if "hang" in solution_strs:
        time.sleep(60)
    scores = [len(solution_strs) * scale, {"score": 2, "acc": 1}, None, float("nan")]
    return scores[: len(solution_strs) - ("short" in solution_strs)]
"""


def test_a_batch_function_is_called_once_with_lists(tmp_path):
    sandbox = sandbox_of(tmp_path, BATCH, HASTY, '{"scale": 10}', batch=True)
    told = sandbox.judge([case(text) for text in "abcd"])
    assert told[:2] == [Verdict(40.0, 40.0, {}), Verdict(2.0, 1.0, {})]
    assert [verdict.reason for verdict in told[2:]] == ["error", "error"]
    told = sandbox.judge([case("a"), case("short")])
    assert [verdict.message for verdict in told] == [
        "ValueError: the reward returned 1 results for 2 rows"
    ] * 2
    told = sandbox.judge([case("a"), case("hang")])
    assert [verdict.reason for verdict in told] == ["timeout", "timeout"]
    assert sandbox.judge([case("a")])[0] == Verdict(10.0, 10.0, {})
    sandbox.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\nimport no_such_module_anywhere\n", r"reward\.py:2: importing the reward file failed: Module"),
        ("x = 1\ndef f(:\n", r"reward\.py:2: importing the reward file failed: SyntaxError"),
        ("import os\nos._exit(4)\n", "that was to import the reward file failed: its process ended with exit code 4"),
        ("compute_score = 3", "'compute_score' is not a function"),
        ("other = 3", r"no 'compute_score' there; reward\.function"),
        ("def compute_score(solution, truth): return 1.0", r"cannot be called as compute_score\(data_source=…, sol"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_score_is_refused_before_the_run(tmp_path, text, expected):
    with pytest.raises(UserError, match=expected):
        sandbox_of(tmp_path, text).check()


def test_an_unknown_argument_is_refused_before_the_run(tmp_path):
    text = "def compute_score(data_source, solution_str, ground_truth, extra_info): return 1.0"
    with pytest.raises(UserError, match=r"extra_info=…, strict=…\): got an unexpected keyword argument"):
        sandbox_of(tmp_path, text, arguments='{"strict": true}').check()


def test_a_file_edited_during_a_run_counts_from_the_next_one(tmp_path):
    text = "import os\ndef compute_score(solution_str, **row): return {} if solution_str else os._exit(1)\n"
    sandbox = sandbox_of(tmp_path, text.format(1))
    assert sandbox.judge([case("a")])[0].score == 1
    edited = sandbox_of(tmp_path, text.format(2))
    told = sandbox.judge([case(""), case(""), case("a")])  # both of its workers are replaced
    assert [verdict.reason for verdict in told[:2]] == ["crash"] * 2 and told[2].score == 1
    assert edited.judge([case("a")])[0].score == 2
    sandbox.close()
    edited.close()


def test_the_file_imports_what_the_trainer_could(tmp_path, monkeypatch):
    (tmp_path / "helper_of_mine.py").write_text("score = 7.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "import helper_of_mine\ndef compute_score(**row): return helper_of_mine.score"
    sandbox = sandbox_of(tmp_path, text)
    assert sandbox.judge([case("")]) == [Verdict(7.0, 7.0, {})]
    sandbox.close()


FORGER = """
import json, os, struct
def compute_score(solution_str, **row):
    for descriptor in range(3, 20):
        body = json.dumps(json.loads(solution_str)).encode()
        try:
            os.write(descriptor, struct.pack("!I", len(body)) + body)
        except OSError:
            pass
    return 0.5
"""


@pytest.mark.parametrize(
    "message", ['["guess", [[1.0, 1.0, {}]]]', '{"ready": []}', '{"refused": "you"}', "[[]]", "7"]
)
def test_what_was_not_asked_for_is_no_result(tmp_path, message):
    sandbox = sandbox_of(tmp_path, FORGER)
    (told,) = sandbox.judge([case(message)])
    assert told.reason == "crash" and "a message that was not asked for" in told.message
    sandbox.close()


def test_a_result_that_is_too_long_is_not_taken(tmp_path):
    text = """
    def compute_score(solution_str, **row):
        return {"score": 1, **{"x" * 100 + str(i): i for i in range(100_000)}}
    """
    sandbox = sandbox_of(tmp_path, text)
    (told,) = sandbox.judge([case("")])
    assert told.score == 1 and len(told.numbers) <= 32
    sandbox.close()
