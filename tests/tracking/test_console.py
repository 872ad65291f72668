import errno
import io
import os
import subprocess
import sys
import threading
import time

import pytest

from jaxflow.tracking import progress
from jaxflow.tracking.console import Console
from jaxflow.types import Sample

SAMPLES = [
    Sample(10, "addition", "12+3=", "15 [bold red]x[/]", "15", 1.0, 1.0, True, {}),
    Sample(10, "addition", "9+9=", "\x1b[2J1\n" + "7" * 900, "18", 0.0, 0.0, False, {}),
]
METRICS = {"critic/score/mean": 0.25, "perf/throughput": 12345.0}


def everything(console):
    console.banner(["run tiny", "64 prompts × 1 sample"])
    console.begin(1)
    console.stage("gen")
    console.note("first\nsecond")
    console.warn("careful")
    console.step(2, METRICS, 3.0)
    validation = {"val-core/addition/acc/mean@1": 0.5, "val-aux/addition/rows": 2.0}
    console.evaluation(2, validation, SAMPLES)
    console.done(["steps 2"])


def test_plain_output_is_lines_without_a_single_escape_whatever_the_environment(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    file = io.StringIO()
    everything(Console(100, live=False, file=file))
    text = file.getvalue()
    assert not set(text) & set(map(chr, [*range(10), *range(11, 32), 127, 155]))
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[:6] == [
        "run tiny",
        "64 prompts × 1 sample",
        "first",
        "second",
        "warning: careful",
        "step 2/100 · 3.0 s · ETA 4 min 54 s · score 0.25 · tokens/s/device 12,345",
    ]
    assert lines[6] == "validation at step 2: addition/acc 0.5"
    assert lines[-1] == "steps 2"


def test_a_stream_that_is_no_terminal_gets_plain_lines_by_default():
    file = io.StringIO()
    everything(Console(100, file=file))
    assert "\x1b" not in file.getvalue() and "step 2/100" in file.getvalue()


def test_sampled_text_is_shown_as_it_is_and_never_as_markup_or_control():
    file = io.StringIO()
    with Console(100, live=False, file=file) as console:
        console.evaluation(10, {}, SAMPLES)
    text = file.getvalue()
    assert "15 [bold red]x[/]" in text and "␛[2J1⏎777" in text
    assert text.count("7") < 400, "a long response is cut"
    assert "cut at the length" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_terminal_gets_one_live_line_and_its_cursor_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    console = Console(100, live=True, file=file)
    everything(console)
    console.close()
    text = file.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert "\x1b[2J" not in text and "generate 0." in text
    assert "step 2/100" not in text, "finished steps live in the line alone"


def test_an_error_output_that_goes_elsewhere_is_left_alone(monkeypatch):
    elsewhere = io.StringIO()
    monkeypatch.setattr(sys, "stderr", elsewhere)
    file = io.StringIO()
    with Console(100, live=True, file=file):
        print("trouble", file=sys.stderr)
    assert elsewhere.getvalue() == "trouble\n" and "trouble" not in file.getvalue()


def test_the_live_line_follows_the_stage_that_is_watched(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    with Console(100, live=True, file=file) as console:
        console.watch(lambda: "old_log_prob")
        wait_for(lambda: "score with actor" in file.getvalue())


def test_a_long_stage_gives_a_sign_of_life_in_a_plain_log(monkeypatch):
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.1)
    file = io.StringIO()
    with Console(100, live=False, file=file) as console:
        console.stage("update_actor")
        wait_for(lambda: "update actor, " in file.getvalue())
    assert "; step 1/100" in file.getvalue()


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed file")]
)
def test_output_that_cannot_be_written_is_dropped(live, error):
    class Failing(io.StringIO):
        def write(self, text):
            raise error

        def flush(self):
            raise error

    everything(Console(100, live=live, file=Failing()))


def test_characters_that_the_output_cannot_hold_are_replaced():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    everything(Console(100, live=False, file=file))
    assert b"64 prompts ? 1 sample" in raw.getvalue()


def test_a_reader_that_goes_away_does_not_change_the_exit_status():
    script = (
        "from jaxflow.tracking.console import Console\n"
        "console = Console(9)\n"
        "for step in range(20000): console.note('line ' * 20)\n"
        "console.done(['end'])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    )
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() == 0


def test_closing_ends_the_thread_and_may_be_repeated():
    console = Console(100, live=False, file=io.StringIO())
    console.close()
    console.close()
    assert "console" not in {thread.name for thread in threading.enumerate()}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
