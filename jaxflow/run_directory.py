"""The files of a run: where each one lies, who may write them, and when a checkpoint counts as written.

Knows files, not arrays: what a role writes into its folder is opaque here. Layout of a workdir:

    config.json  metrics.jsonl  samples.jsonl  tensorboard/
    initial/<role>/…  initial/manifest.json                       weights as they were before the first step
    checkpoints/step_00000120/<role>/…  …/manifest.json           all state after step 120

A set of files is written into a hidden staging folder, described by a manifest (size and SHA-256 of each
file and of the manifest itself), flushed to the disk and only then renamed to its name. A process killed at
any instant, or a full disk, therefore leaves the set before or the set after, never a mix. Everything read
back is JSON or handed on by path; nothing is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from jaxflow.durable import sync_folder
from jaxflow.types import UserError

FORMAT = 1  # of manifest.json; a reader refuses a newer one. The checksum of the manifest is the same in all.
_MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_WRITING, _REMOVING = ".writing_", ".removing_"  # folders that hold nothing of value when a run starts


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, every file verified."""

    step: int  # steps finished when it was saved
    path: Path  # holds one folder per role
    state: Mapping[str, object]  # as given to `RunDirectory.commit`
    problems: tuple[str, ...]  # one message per newer checkpoint passed over, naming the damaged file


class _Damaged(Exception):
    """A file of a set is not what its manifest says."""


class RunDirectory:
    """The folder of one run.

    Args:
      workdir: the folder; `acquire` creates it.
      keep: newest checkpoints kept, at least 1.
    """

    def __init__(self, workdir: Path, keep: int):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint must be kept")
        self.workdir = workdir
        self.metrics = workdir / "metrics.jsonl"
        self.samples = workdir / "samples.jsonl"
        self.tensorboard = workdir / "tensorboard"
        self.config = workdir / "config.json"
        self._checkpoints = workdir / "checkpoints"
        self._initial = workdir / "initial"
        self._keep = keep
        self._damaged: set[Path] = set()  # seen by `latest`: not worth keeping beside whole ones
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the workdir for this process until `release` or the process ends, however it ends.

        Raises:
          UserError: another process holds it (named by its pid), or it cannot be written.
        """
        with _refusals_named(self.workdir):
            self.workdir.mkdir(parents=True, exist_ok=True)
            lock = (self.workdir / ".lock").open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip()
                lock.close()
                raise UserError(
                    f"{self.workdir}: another run is writing here ({owner}); wait for it, stop it, or choose "
                    "another --workdir"
                ) from None
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
        self._lock = lock

    def release(self) -> None:
        """Gives the workdir back; does nothing if it is not held."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_config(self, text: str) -> None:
        """Writes config.json, whole or not at all."""
        with _refusals_named(self.config):
            _write_atomically(self.config, text)

    def read_config(self) -> dict | None:
        """Returns what config.json holds, None if there is none.

        Raises:
          UserError: it is not a JSON object.
        """
        try:
            text = self.config.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config}: could not be read: {error}") from error
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{self.config}:{error.lineno}: not JSON: {error.msg}") from error
        if not isinstance(config, dict):
            raise UserError(f"{self.config}: holds no JSON object")
        return config

    def stage_initial(self) -> Path:
        """Returns an empty folder for the weights before the first step, one sub-folder per role."""
        return self._stage(self._initial)

    def commit_initial(self) -> None:
        """Makes what was staged the run's initial weights."""
        self._commit(self._initial, step=0, state={})

    def initial(self) -> Path | None:
        """Returns the folder of the initial weights, verified; None if they were never committed.

        Raises:
          UserError: they are damaged.
        """
        if not self._initial.exists():
            return None
        try:
            _read_verified(self._initial)
        except _Damaged as error:
            raise UserError(
                f"{error}; the initial weights cannot be rebuilt: restore the file, or start again in "
                "another --workdir"
            ) from error
        return self._initial

    def stage(self, step: int) -> Path:
        """Returns an empty folder for the checkpoint of a step, one sub-folder per role.

        Leftovers of saves that never came to their end are removed first.
        """
        return self._stage(self._folder(step))

    def commit(self, step: int, state: Mapping[str, object]) -> None:
        """Makes what was staged the checkpoint of a step, then removes all but the newest `keep`.

        Args:
          step: as given to `stage`. If a whole checkpoint of it exists already, that one stays: the state
            after a step is a function of the run, so both are the same.
          state: plain JSON values that decide the next step beside the arrays.

        Raises:
          UserError: the disk refused a write; the checkpoints before are untouched.
        """
        self._commit(self._folder(step), step, state)
        self._prune(step)

    def latest(self) -> Checkpoint | None:
        """Finds the newest checkpoint whose files are all as its manifest says; None if there is none at all.

        Raises:
          UserError: checkpoints exist but none is whole, or one was written by a newer jaxflow.
        """
        problems: list[str] = []
        for step, path in reversed(self._committed()):
            try:
                manifest = _read_verified(path)
                if manifest["step"] != step:
                    raise _Damaged(f"{path / _MANIFEST}: is of step {manifest['step']}")
            except _Damaged as error:
                problems.append(f"checkpoint of step {step} passed over: {error}")
                self._damaged.add(path)
                continue
            return Checkpoint(step, path, manifest["state"], tuple(problems))
        if problems:
            raise UserError(
                f"{self._checkpoints}: no checkpoint is whole; restore a file, or start again in another "
                "--workdir:\n  " + "\n  ".join(problems)
            )
        return None

    def at(self, step: int) -> Checkpoint:
        """Returns the checkpoint of a step, every file verified.

        Raises:
          UserError: there is none, it is damaged, or it was written by a newer jaxflow.
        """
        path = self._folder(step)
        if not path.is_dir():
            steps = ", ".join(str(at) for at, _ in self._committed())
            raise UserError(f"{path}: no checkpoint of step {step}; there are: {steps if steps else 'none'}")
        try:
            manifest = _read_verified(path)
        except _Damaged as error:
            raise UserError(str(error)) from error
        return Checkpoint(step, path, manifest["state"], ())

    def _folder(self, step: int) -> Path:
        return self._checkpoints / f"step_{step:08d}"

    def _committed(self) -> list[tuple[int, Path]]:
        """Lists the checkpoints under their final names, oldest first."""
        if not self._checkpoints.is_dir():
            return []
        matches = ((_STEP_FOLDER.fullmatch(path.name), path) for path in self._checkpoints.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _stage(self, final: Path) -> Path:
        staged = final.with_name(_WRITING + final.name)
        with _refusals_named(staged):
            final.parent.mkdir(parents=True, exist_ok=True)
            for leftover in final.parent.iterdir():
                if leftover.is_dir() and leftover.name.startswith((_WRITING, _REMOVING)):
                    shutil.rmtree(
                        leftover, ignore_errors=True
                    )  # one in use elsewhere: the next save tries again
            staged.mkdir()
        return staged

    def _commit(self, final: Path, step: int, state: Mapping[str, object]) -> None:
        staged = final.with_name(_WRITING + final.name)
        try:
            with _refusals_named(staged):
                _write_manifest(staged, step, state)
                if final.exists() and _is_whole(final):
                    shutil.rmtree(staged)
                    return
                if final.exists():
                    _remove(final)
                os.rename(staged, final)
                self._damaged.discard(final)
                sync_folder(final.parent)
        except UserError:
            shutil.rmtree(staged, ignore_errors=True)  # what could not be finished gives its space back
            raise

    def _prune(self, step: int) -> None:
        """Removes known-damaged checkpoints and all but the newest `keep` up to `step`."""
        whole = [path for at, path in self._committed() if at <= step and path not in self._damaged]
        with _refusals_named(self._checkpoints):
            for path in [*whole[: -self._keep], *(path for path in self._damaged if path.exists())]:
                _remove(path)
        self._damaged.clear()


@contextlib.contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    """Turns the system's refusal of a file operation into a message for the user."""
    try:
        yield
    except OSError as error:
        where = path if error.filename is None else error.filename
        raise UserError(f"{where}: could not be written: {error.strerror}") from error


def _remove(folder: Path) -> None:
    """Removes a folder; a process killed half-way leaves no half of it under its name."""
    doomed = folder.with_name(_REMOVING + folder.name)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # the next save tries again


def _write_manifest(folder: Path, step: int, state: Mapping[str, object]) -> None:
    """Flushes every file of the folder to the disk and lists it."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = _fingerprint(path)
    for path in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(path)
    # Through JSON and back, so that the checksum is taken over what a reader will parse.
    manifest = json.loads(json.dumps({"format": FORMAT, "step": step, "state": dict(state), "files": files}))
    _write_atomically(folder / _MANIFEST, json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1))


def _read_verified(folder: Path) -> dict:
    """Returns the manifest of a folder after comparing every file with it.

    Raises:
      _Damaged: naming the first file that is missing, cut off or altered.
      UserError: the format is newer than this program.
    """
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise _Damaged(f"{path}: has {size} bytes, was saved with {expected['bytes']}")
            if _fingerprint(path) != expected:
                raise _Damaged(f"{path}: its content differs from what was saved")
        except OSError as error:
            raise _Damaged(f"{path}: could not be read: {error.strerror}") from error
    return manifest


def _read_manifest(folder: Path) -> dict:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise _Damaged(f"{path}: could not be read: {error.strerror}") from error
    except ValueError as error:
        raise _Damaged(f"{path}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
        raise _Damaged(f"{path}: its content differs from what was saved")
    if manifest["format"] > FORMAT:
        raise UserError(
            f"{path}: has format {manifest['format']}, this jaxflow reads up to {FORMAT}: use the newer "
            "jaxflow that wrote it"
        )
    return manifest


def _is_whole(folder: Path) -> bool:
    try:
        _read_verified(folder)
    except _Damaged:
        return False
    return True


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _MANIFEST)


def _fingerprint(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _digest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_atomically(path: Path, text: str) -> None:
    written = path.with_name(_WRITING + path.name)
    with written.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(written, path)
    sync_folder(path.parent)
