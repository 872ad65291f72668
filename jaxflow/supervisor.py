"""Brings the workers up, again where they are lost, until the run is done or has been given up.

Knows what a loss is and what it costs; nothing of a step.
"""

from __future__ import annotations

import traceback

from jaxflow.controller import Controller
from jaxflow.job import Job
from jaxflow.run_directory import Checkpoint, RunDirectory
from jaxflow.stop import Stop
from jaxflow.tracking.console import Console
from jaxflow.types import UserError
from jaxflow.workers.future import CallList
from jaxflow.workers.launch import connected, launched
from jaxflow.workers.protocol import RoleError, WorkerLost

FAILED, LOST = 1, 3  # exit codes


class Failure(Exception):
    """What went wrong through no mistake of the user's that we know of: one line, and where the trace is."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Supervisor:
    """One run, over as many lives of its workers as `cluster.max_restarts` allows.

    Every loss takes all groups down: the roles' states belong to one step, so all go back to the last checkpoint.
    """

    def __init__(
        self,
        job: Job,
        directory: RunDirectory,
        calls: CallList,
        console: Console,
        stop: Stop,
        process_started: float,
    ):
        self._job, self._directory, self._calls = job, directory, calls
        self._console, self._stop, self._process_started = console, stop, process_started
        self._restarts = 0
        self._failure: tuple[str, str, str] | None = None  # role, method and message of the last exception

    def run(self, checkpoint: Checkpoint | None) -> int:
        """Run to the end and return the exit code.

        Raises Failure: a role's exception came twice the same (code 1), or workers were lost once more often than
        allowed (code 3). UserErrors and refusals of roles pass through: no restart mends them.
        """
        try:
            with connected(self._job.config, self._job.derived):
                while True:
                    try:
                        return self._live(checkpoint)
                    except UserError:
                        raise
                    except RoleError as error:
                        if self._stop.wished:
                            self._console.warn(f"{error}; what was saved before is what there is")
                            return self._stop.exit_code
                        self._restart_or_give_up(error)
                        checkpoint = self._directory.latest()
        except (UserError, Failure):
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            raise self._failed(message, traceback.format_exc(), FAILED) from error

    def _live(self, checkpoint: Checkpoint | None) -> int:
        job = self._job
        self._console.stage("starting workers")
        with launched(job.config, job.derived, self._calls, self._directory.workdir) as workers:
            self._console.stage(None)
            if self._restarts == 0:
                self._stop.defer()
            controller = Controller(
                job, self._directory, workers, self._console, self._stop, self._process_started
            )
            return controller.run(checkpoint)

    def _restart_or_give_up(self, error: RoleError) -> None:
        """Count a loss; raise Failure where another life would not help or is not allowed."""
        lost, failure = isinstance(error, WorkerLost), (error.role, error.method, error.message)
        if not lost and failure == self._failure:
            raise self._failed(f"{error}\nit came again after a restart", error.trace, FAILED) from error
        self._failure = None if lost else failure
        allowed = self._job.config.cluster.max_restarts
        if self._restarts == allowed:
            message = f"{error}\nno restart is left: cluster.max_restarts is {allowed}"
            raise self._failed(message, error.trace, LOST if lost else FAILED) from error
        self._restarts += 1
        self._console.warn(
            f"{error}; restart {self._restarts} of at most {allowed}, from the last checkpoint"
        )

    def _failed(self, message: str, trace: str, exit_code: int) -> Failure:
        """Keep the trace in the workdir and return the message for people."""
        path = self._directory.workdir / "error.log"
        try:
            path.write_text(trace)
        except OSError as refused:
            return Failure(f"{message}\nthe trace could not be written ({refused}):\n{trace}", exit_code)
        return Failure(f"{message}\nthe trace is in {path}", exit_code)
