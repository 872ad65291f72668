"""What a run makes of the failures of its workers: another life, or an end that says why."""

import contextlib
import types

import pytest
from runs import config_of

from jaxflow import supervisor as supervisor_module
from jaxflow.stop import Stop
from jaxflow.supervisor import Failure, Supervisor
from jaxflow.types import UserError
from jaxflow.workers.future import CallList
from jaxflow.workers.protocol import RoleError, RoleRefusal, WorkerLost


class Listener:
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)

    def stage(self, name):
        pass


class Run:
    """A run of lives that each end as they are told: with an exit code or an exception."""

    def __init__(self, monkeypatch, folder, lives, max_restarts=2):
        self.begun_from, self.closed, self.stop, self.console = [], 0, Stop(), Listener()
        lives = iter(lives)

        @contextlib.contextmanager
        def launched(config, derived, calls, workdir):
            try:
                yield "workers"
            finally:
                self.closed += 1

        class Controller:
            def __init__(controller, *arguments):
                pass

            def run(controller, checkpoint):
                self.begun_from.append(checkpoint)
                end = next(lives)
                if isinstance(end, Exception):
                    raise end
                return end

        monkeypatch.setattr(supervisor_module, "launched", launched)
        monkeypatch.setattr(supervisor_module, "connected", lambda *_: contextlib.nullcontext())
        monkeypatch.setattr(supervisor_module, "Controller", Controller)
        job = types.SimpleNamespace(config=config_of(**{"cluster.max_restarts": max_restarts}), derived=None)
        directory = types.SimpleNamespace(workdir=folder, latest=lambda: f"checkpoint {len(self.begun_from)}")
        self.supervisor = Supervisor(job, directory, CallList(), self.console, self.stop, 0.0)

    def __call__(self):
        return self.supervisor.run("checkpoint 0")


def lost(process=1):
    return WorkerLost("actor", "update", f"process {process} (pid 7)", "the process ended", "its trace")


def raised(message="KeyError: 'x'"):
    return RoleError("reward", "score", "process 0 (pid 7)", message, "its trace")


def test_a_lost_worker_begins_another_life_from_the_last_checkpoint(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, [lost(), lost(0), 0])
    assert run() == 0
    assert run.begun_from == ["checkpoint 0", "checkpoint 1", "checkpoint 2"] and run.closed == 3
    first, second = run.console.warnings
    assert "actor.update failed in process 1 (pid 7): the process ended; restart 1 of at most 2" in first
    assert "restart 2 of at most 2" in second


def test_one_loss_too_many_ends_with_code_3_and_a_message_of_what_came_last(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, [lost(), lost(0)], max_restarts=1)
    with pytest.raises(Failure) as failure:
        run()
    assert failure.value.exit_code == 3 and run.closed == 2
    message, limit, place = str(failure.value).splitlines()
    assert message == "actor.update failed in process 0 (pid 7): the process ended"
    assert limit == "no restart is left: cluster.max_restarts is 1"
    assert str(tmp_path / "error.log") in place and (tmp_path / "error.log").read_text() == "its trace"


def test_the_same_exception_twice_is_no_accident(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, [raised(), raised()], max_restarts=9)
    with pytest.raises(Failure, match=r"reward.score failed in process 0 .*KeyError") as failure:
        run()
    assert failure.value.exit_code == 1 and len(run.begun_from) == 2


def test_other_exceptions_and_losses_in_between_are_accidents(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, [raised(), raised("OSError: full"), lost(), raised(), 0], max_restarts=9)
    assert run() == 0


@pytest.mark.parametrize(
    "refusal", [UserError("no such file"), RoleRefusal("reward", "score", "process 0", "no such file", "")]
)
def test_what_the_user_must_mend_is_not_tried_again(monkeypatch, tmp_path, refusal):
    run = Run(monkeypatch, tmp_path, [refusal], max_restarts=9)
    with pytest.raises(UserError, match=r"^no such file$"):
        run()
    assert not (tmp_path / "error.log").exists() and run.console.warnings == []


def test_a_run_that_was_asked_to_stop_begins_no_other_life(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, [lost()])
    monkeypatch.setattr(Stop, "wished", True)
    monkeypatch.setattr(Stop, "exit_code", 143)
    assert run() == 143
    (warning,) = run.console.warnings
    assert "process 1 (pid 7): the process ended" in warning and "restart" not in warning


def test_our_own_mistakes_end_with_code_1_and_a_trace(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, [ZeroDivisionError("ours")])
    with pytest.raises(Failure, match="ZeroDivisionError: ours") as failure:
        run()
    assert failure.value.exit_code == 1 and "Traceback" in (tmp_path / "error.log").read_text()


def test_a_trace_that_cannot_be_written_is_shown(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path / "missing", [lost()], max_restarts=0)
    with pytest.raises(Failure, match=r"(?s)could not be written.*its trace"):
        run()
