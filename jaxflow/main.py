"""The command line: flags to config to controller. Knows the order of a run's beginning, no part of its work.

    python -m jaxflow.main --config=configs/ppo_tiny.py [--config.actor.optimizer.learning_rate=1e-4 …]
                           [--workdir=DIR] [--print_config]

Exit codes: 0 done; 2 refused, with the reason; 1 failed, with a trace in the workdir; 128 + signal number
stopped by SIGTERM or SIGINT with its state saved.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxflow import batch_algebra
from jaxflow.config import (
    Config,
    check_overrides,
    difference,
    flatten,
    from_config_dict,
    from_json,
    to_json,
)
from jaxflow.config_checks import check
from jaxflow.controller import Controller, Job
from jaxflow.data.source import load_source, load_tokenizer
from jaxflow.run_directory import Checkpoint, RunDirectory
from jaxflow.stop import Stop
from jaxflow.tracking.console import Console
from jaxflow.types import UserError
from jaxflow.workers.future import CallList
from jaxflow.workers.launch import launched
from jaxflow.workers.protocol import RoleError
from jaxflow.workers.resource_pool import ResourcePool

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file whose get_config() is the run.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default runs/<config>/<time>. The same folder resumes."
)
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "Print the resolved config and batch algebra, and end."
)


def _read_flags(arguments: Sequence[str]) -> Config:
    """Turn the command line into a checked tree; every mistake in it is a UserError."""
    check_overrides(arguments[1:])
    try:
        rest = flags.FLAGS(list(arguments))
    except (flags.Error, OSError) as error:
        raise UserError(f"the command line: {str(error).splitlines()[0]}") from error
    if len(rest) > 1:
        raise UserError(f"the command line: nothing is known of {' '.join(rest[1:])}; flags begin with --")
    if _CONFIG.value is None:
        raise UserError("the command line: --config=FILE.py is missing, e.g. --config=configs/ppo_tiny.py")
    return from_config_dict(_CONFIG.value)


def _visible_gpus() -> int:
    """Count this machine's GPUs without opening one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device])
    return len(glob.glob("/proc/driver/nvidia/gpus/*"))


def prepare(config: Config) -> Job:
    """Check the config, read tokenizer and data; UserError for whatever cannot be, before a device is touched."""
    devices = _visible_gpus() if config.cluster.platform == "gpu" else None
    check(config, None, devices)
    tokenizer = load_tokenizer(config.data.task, config.data.tokenizer)
    check(config, tokenizer.vocabulary_size, devices)
    source = load_source(
        config.data.task,
        config.data.train_files,
        config.data.validation_files,
        tokenizer,
        config.data.prompt_key,
        config.data.max_prompt_tokens,
        config.data.overlong_prompts,
        config.data.validation_prompts,
        config.run.seed,
    )
    return Job(config, batch_algebra.derive(config, tokenizer.vocabulary_size), tokenizer, source)


def _pool(job: Job) -> ResourcePool:
    cluster = job.config.cluster
    folders = {"off": "", "user": str(_user_cache() / "jaxflow" / "programs")}
    return ResourcePool(
        "main",
        cluster.platform,
        cluster.devices,
        job.derived.mesh,
        folders.get(cluster.compilation_cache, cluster.compilation_cache),
    )


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


def _resume(job: Job, directory: RunDirectory, console: Console) -> Checkpoint | None:
    """Find where the workdir's run stands and say so; refuse what cannot be continued."""
    saved_config, checkpoint = directory.read_config(), directory.latest()
    if saved_config is None and checkpoint is None:
        return None
    config = job.config
    if config.checkpoint.resume == "never":
        raise UserError(
            f"{directory.workdir} holds a run and checkpoint.resume is never; choose another --workdir"
        )
    if saved_config is not None:
        before, now = from_json(saved_config), config
        for key in difference(before, now):
            console.warn(f"changed since: {key}: {flatten(before).get(key)} → {flatten(now).get(key)}")
    if checkpoint is None:
        console.note(f"{directory.workdir} holds a run without a checkpoint: it begins again")
        return None
    for problem in checkpoint.problems:
        console.warn(problem)
    if checkpoint.state["tokenizer"] != job.tokenizer.identity:
        raise UserError(
            f"{checkpoint.path} was made with tokenizer {checkpoint.state['tokenizer']}, "
            f"this run has {job.tokenizer.identity}"
        )
    prompts, left = checkpoint.step * config.data.prompts_per_step, config.run.total_steps - checkpoint.step
    console.note(
        f"resumed after step {checkpoint.step} from {checkpoint.path}: "
        f"data position {prompts:,} prompts, {max(left, 0)} steps left"
    )
    return checkpoint


def _workdir(config_path: str) -> Path:
    if _WORKDIR.value is not None:
        return Path(_WORKDIR.value)
    return Path("runs") / Path(config_path).stem / time.strftime("%Y%m%d-%H%M%S")


def _banner(job: Job, workdir: Path) -> list[str]:
    algebra = batch_algebra.describe(job.config, job.derived).splitlines()
    return [f"workdir     {workdir}", *algebra, *job.source.report]


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    config = _read_flags(arguments)
    job = prepare(config)
    if _PRINT_CONFIG.value:
        print(json.dumps(to_json(config), indent=2))
        print(batch_algebra.describe(config, job.derived))
        return 0
    directory = RunDirectory(
        _workdir(config_flags.get_config_filename(flags.FLAGS["config"])).absolute(), config.checkpoint.keep
    )
    directory.acquire()
    calls, stop = CallList(), Stop()
    with Console(config.run.total_steps) as console:
        console.watch(calls.current_stage)
        console.banner(_banner(job, directory.workdir))
        checkpoint = _resume(job, directory, console)
        if checkpoint is not None and checkpoint.step >= config.run.total_steps:
            console.note(f"nothing to do: all {config.run.total_steps} steps are done")
            return 0
        directory.write_config(json.dumps(to_json(config), indent=2))
        try:
            console.stage("starting workers")
            with launched(config, job.derived, _pool(job), calls) as transport:
                console.stage(None)
                stop.listen()
                return Controller(job, directory, transport, calls, console, stop).run(checkpoint)
        except UserError:
            raise
        except RoleError as error:
            _keep_trace(directory.workdir, error.trace)
            raise
        except Exception:
            _keep_trace(directory.workdir, traceback.format_exc())
            raise


def _keep_trace(workdir: Path, trace: str) -> None:
    (workdir / "error.log").write_text(trace)
    print(f"the trace is in {workdir / 'error.log'}", file=sys.stderr)


def run() -> None:
    """Be the program: messages to people, exit codes to shells."""
    logging.basicConfig(level=logging.WARNING)
    try:
        code = main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RoleError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    run()
