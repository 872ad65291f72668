"""The command line: flags to config to controller. Knows the order of a run's beginning, no part of its work.

    python -m jaxflow.main --config=configs/ppo_tiny.py [--config.actor.optimizer.learning_rate=1e-4 …]
                           [--workdir=DIR] [--print_config]
                           [--plan [--compile [--compile_for=gpu]] [--plan_json=FILE] [--plan_timeline=FILE]]

--plan says what would run where, in how many bytes and seconds, and ends; no device is needed (docs/planning.md).

Exit codes: 0 done; 2 refused, with the reason; 1 failed, with a trace in the workdir's error.log; 3 worker
processes were lost more often than cluster.max_restarts; 128 + signal number stopped by SIGTERM or SIGINT with
its state saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from ml_collections import ConfigDict, config_flags

from jaxflow import batch_algebra
from jaxflow.checks import check, check_values, warnings
from jaxflow.config import (
    Config,
    difference,
    flatten,
    from_config_dict,
    from_json,
    override,
    to_json,
)
from jaxflow.data.source import load_tokenizer
from jaxflow.dataflow import load_dataflow
from jaxflow.job import Job
from jaxflow.mapping.auto import chosen
from jaxflow.plan_command import PlanFiles, plan_lines, players
from jaxflow.run_directory import Checkpoint, RunDirectory
from jaxflow.run_rows import pretraining_rows, step_rows
from jaxflow.stop import Stop, Stopped
from jaxflow.supervisor import Failure, Supervisor
from jaxflow.tracking.console import Console
from jaxflow.types import UserError
from jaxflow.workers.future import CallList
from jaxflow.workers.judge import choose_judge

# Keys of a model that may change under saved weights: how they are computed with, and what the tokenizer decides.
_NOT_OF_WEIGHTS = ("compute_dtype", "remat", "vocabulary_size")


@dataclasses.dataclass(frozen=True)
class _CommandLine:
    config: Config
    config_file: Path
    workdir: Path | None
    print_config: bool
    plan: bool
    compile_target: str  # what --plan compiles its programs for; empty: it compiles none
    plan_files: PlanFiles


def _read_command_line(arguments: Sequence[str]) -> _CommandLine:
    """Turn the arguments into a config of the schema; every mistake in them is a UserError."""
    values = flags.FlagValues()
    values.set_gnu_getopt()
    # In two stages: which keys there are to override depends on the pools that the file describes.
    config_flags.DEFINE_config_file(
        "config", None, "Python file whose get_config() is the run.", flag_values=values, sys_argv=[]
    )
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_bool("print_config", False, "Print the config, and end.", flag_values=values)
    flags.DEFINE_bool("plan", False, "Print what would run where, and end.", flag_values=values)
    flags.DEFINE_bool("compile", False, "With --plan: compile its programs, too.", flag_values=values)
    flags.DEFINE_enum("compile_for", "cpu", ("cpu", "gpu"), "What --compile is for.", flag_values=values)
    flags.DEFINE_string("plan_json", None, "File that --plan writes the plan to.", flag_values=values)
    flags.DEFINE_string(
        "plan_timeline", None, "File that --plan writes a step's trace to.", flag_values=values
    )
    try:
        rest = values(list(arguments), known_only=True)
    except (flags.Error, OSError) as error:
        raise UserError(f"the command line: {str(error).splitlines()[0]}") from error
    except Exception as error:  # the config file is a program: it can fail in any way
        raise UserError(f"{_place(error)}: reading the config failed: {_described(error)}") from error
    if values.config is None:
        raise UserError("the command line: --config=FILE.py is missing, e.g. --config=configs/ppo_tiny.py")
    path = Path(config_flags.get_config_filename(values["config"]))
    if not isinstance(values.config, ConfigDict):  # a missing file leaves a placeholder here
        if not path.is_file():
            raise UserError(f"the command line: --config={path}: no such file")
        raise UserError(f"{path}: get_config() must return an ml_collections ConfigDict")
    rest = override(values.config, rest[1:])
    if rest:
        raise UserError(f"the command line: nothing is known of {' '.join(rest)}; flags begin with --")
    workdir = None if values.workdir is None else Path(values.workdir)
    target = values.compile_for if values.compile else ""
    files = PlanFiles(
        *(None if name is None else Path(name) for name in (values.plan_json, values.plan_timeline))
    )
    return _CommandLine(
        from_config_dict(values.config),
        path,
        workdir,
        values.print_config,
        values.plan,
        target,
        files,
    )


def _place(error: Exception) -> str:
    """Return file:line of the user's code that failed: the innermost outside installed packages and our own."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(ours)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "the config file"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"


def _visible_gpus() -> int:
    """Count this machine's GPUs without opening one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device])
    return len(glob.glob("/proc/driver/nvidia/gpus/*"))


def settled(config: Config) -> Config:
    """Return the config that runs: with `cluster.mapping = "auto"` its pools are searched for first."""
    if config.cluster.mapping == "pools":
        return config
    check_values(config)
    return chosen(
        config, load_tokenizer(config.data.task, config.data.tokenizer).vocabulary_size, players(config)
    )


def prepare(config: Config) -> Job:
    """Check the config, read tokenizer and data; UserError for whatever cannot be, before a device is touched."""
    devices = _visible_gpus() if config.cluster.platform == "gpu" else None
    check(config, None, devices)
    tokenizer = load_tokenizer(config.data.task, config.data.tokenizer)
    check(config, tokenizer.vocabulary_size, devices)
    if config.rollout.stop_strings:
        tokenizer.token_texts()  # again in the worker, but there it would be refused late
    dataflow, files = load_dataflow(config.algorithm.name), bool(config.data.train_files)
    placed = {role for pool in config.cluster.pools.values() for role in pool.roles}
    source = step_rows(config, tokenizer)
    if "pretraining" in dataflow.playing(placed) and config.data.pretraining_files:
        said, _ = pretraining_rows(config, tokenizer).report  # again in the worker, where it would come late
        source = dataclasses.replace(source, report=(*source.report, f"pretraining: {said}"))
    if config.run.total_epochs > 0:
        steps = config.run.total_epochs * len(source.train) // config.data.prompts_per_step
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, total_steps=max(1, steps)))
    if config.cost.function:
        with contextlib.closing(choose_judge(config.cost, files)) as judge:
            judge.check()
    if dataflow.answers(placed):
        with contextlib.closing(choose_judge(config.reward, files)) as judge:
            judge.check()  # again in the worker, but there it would come late
            judge.check_sources(
                {row.data_source for row in (*source.train_prompts, *source.validation_prompts)}
            )
    return Job(config, batch_algebra.derive(config, tokenizer.vocabulary_size), tokenizer, source)


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
        _refuse_other_model(directory.workdir, saved_config, config)
        console.note(f"{directory.workdir} holds a run without a checkpoint: it begins again")
        return None
    for problem in checkpoint.problems:
        console.warn(problem)
    _refuse_other_model(directory.workdir, saved_config, config)
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


def _refuse_other_model(workdir: Path, saved: dict | None, config: Config) -> None:
    """Refuse a resumed run whose weights would not fit its models, before any worker starts."""
    if saved is None:
        return
    before = from_json(saved)
    pairs = (
        ("actor", before.actor.model, config.actor.model),
        ("critic", before.critic_model, config.critic_model),
        ("reward", before.reward_model, config.reward_model),
        ("cost", before.cost_model, config.cost_model),
    )
    differences = [
        f"  {role}.model.{key}: {vars(old)[key]} → {vars(new)[key]}"
        for role, old, new in pairs
        for key in vars(old)
        if key not in _NOT_OF_WEIGHTS and vars(old)[key] != vars(new)[key]
    ]
    adapters = (
        ("actor", before.actor.lora, config.actor.lora),
        ("critic", before.critic.lora, config.critic.lora),
    )
    differences += [
        f"  {role}.lora.{key}: {vars(old)[key]} → {vars(new)[key]}"
        for role, old, new in adapters
        for key in vars(old)
        if max(old.rank, new.rank) > 0 and vars(old)[key] != vars(new)[key]
    ]
    if differences:
        raise UserError(
            "\n".join(
                [
                    f"{workdir} holds a run of another model; go on with its config, or choose another --workdir:",
                    *differences,
                ]
            )
        )


def _workdir(line: _CommandLine) -> Path:
    if line.workdir is not None:
        return line.workdir.absolute()
    return Path("runs", line.config_file.stem, time.strftime("%Y%m%d-%H%M%S")).absolute()


def _banner(job: Job, workdir: Path) -> list[str]:
    algebra = batch_algebra.describe(job.config, job.derived).splitlines()
    resume = "stopped or killed, the same command with this --workdir continues it"
    return [f"workdir     {workdir}", f"  {resume}", *algebra, *job.source.report]


def _process_started() -> float:
    """Return when this process began, on `time.monotonic`'s clock; where no /proc tells, now."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    seconds_after_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - seconds_after_boot)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    if {"--help", "-h"} & set(arguments[1:]):
        print(__doc__)
        return 0
    stop = Stop()
    stop.listen()
    line = _read_command_line(arguments)
    if line.plan:
        print("\n".join(plan_lines(line.config, line.plan_files, line.compile_target)))
        return 0
    job = prepare(settled(line.config))
    config = job.config
    if line.print_config:
        print(json.dumps(to_json(config), indent=2))
        print(batch_algebra.describe(config, job.derived))
        return 0
    directory = RunDirectory(_workdir(line), config.checkpoint.keep)
    directory.acquire()
    calls = CallList()
    with Console(config.run.total_steps) as console:
        console.watch(calls.current_stage)
        console.banner(_banner(job, directory.workdir))
        for warning in warnings(config):
            console.warn(warning)
        checkpoint = _resume(job, directory, console)
        if checkpoint is not None and checkpoint.step >= config.run.total_steps:
            console.note(f"nothing to do: all {config.run.total_steps} steps are done")
            return 0
        directory.write_config(json.dumps(to_json(config), indent=2))
        return Supervisor(job, directory, calls, console, stop, _process_started()).run(checkpoint)


def run() -> None:
    """Be the program: messages to people, exit codes to shells."""
    logging.basicConfig(level=logging.WARNING)
    try:
        code = main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except Stopped as signal:
        print(signal, file=sys.stderr)
        code = signal.exit_code
    sys.exit(code)


if __name__ == "__main__":
    run()
