"""What a user hands in: a YAML file, a script, a command line, keys on top of it; read into one mapping of keys.

Knows how each stack's programs are started. Runs none of them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import pyarrow.parquet

from jaxflow.port import hydra, shell
from jaxflow.port.table import Dialect, Values
from jaxflow.port.trl import TRL_GRPO, TRL_PPO
from jaxflow.port.verl import VERL
from jaxflow.port.verl.material import train_files
from jaxflow.types import UserError

_VERL_PROGRAMS = ("main_ppo",)  # verl.trainer.main_ppo, .main_ppo_v0, recipe.dapo.main_dapo's successor
_TRL_PROGRAMS = {"grpo": TRL_GRPO, "ppo": TRL_PPO}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be translated."""

    dialect: Dialect
    values: Mapping[str, object]  # by key, as spelled
    removed: tuple[str, ...]  # keys that were taken away
    rows: int | None  # prompts in the training files; None: nobody knows
    source: str  # for people
    stem: str  # names the config file


def count_rows(files: Sequence[str]) -> int | None:
    """Return the rows of Parquet and JSONL files together; None where one is not there or is neither.

    Raises:
      UserError: a file is not what its name says.
    """
    total = 0
    for path in map(pathlib.Path, files):
        if not path.is_file() or path.suffix not in (".parquet", ".jsonl"):
            return None
        try:
            if path.suffix == ".parquet":
                total += pyarrow.parquet.read_metadata(path).num_rows
            else:
                total += sum(bool(line.strip()) for line in path.open(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: its rows cannot be counted: {error}") from error
    return total if files else None


def of_verl(
    arguments: Sequence[str], command: str | None, rows: int | None, environment: Mapping[str, str]
) -> Request:
    """Read a YAML file, a script or command line on top of it, and keys on top of both; one of the two may lack.

    Raises:
      UserError: no config is given, or it cannot be read.
    """
    files = [argument for argument in arguments if _is_file(argument)]
    configs = [file for file in files if file.endswith((".yaml", ".yml"))]
    scripts = [file for file in files if file not in configs]
    overrides = [argument for argument in arguments if argument not in files]
    given = len(configs), len(scripts) + (command is not None)
    if max(given) > 1 or not any(given):
        raise UserError('the command line: give a CONFIG.yaml, a SCRIPT.sh or --command="… main_ppo …"')
    values = hydra.read_yaml(pathlib.Path(configs[0])) if configs else {}
    if scripts or command is not None:
        script = command if command is not None else _read(scripts[0])
        words = shell.read_command(script, environment, _starts_verl, "verl (verl.trainer.main_ppo)")
        begin = next(place for place, word in enumerate(words) if _is_program(word)) + 1
        # Beside a YAML file the flags say where Hydra would have found it.
        overrides = [*_without_flags(words[begin:], keep=not configs), *overrides]
    merged = hydra.override(values, overrides)
    removed = tuple(key for key, value in merged.items() if isinstance(value, hydra.Deleted))
    given = {key: value for key, value in merged.items() if key not in removed}
    resolved = hydra.resolve(given, VERL.defaults)
    if rows is None:
        today = {VERL.today(key): value for key, value in resolved.items()}
        rows = count_rows(train_files(Values(today, VERL.defaults)))
    source = " and ".join([*files, *(["a command line"] if command is not None else [])])
    return Request(
        VERL, resolved, removed, rows, source, pathlib.Path(files[0]).stem if files else "verl_run"
    )


def of_trl(
    arguments: Sequence[str], command: str | None, rows: int | None, environment: Mapping[str, str]
) -> Request:
    """Read `grpo|ppo [ARGS.yaml|SCRIPT.sh] [--flag value …]`, or a command line and flags on top of it.

    Raises:
      UserError: it is not said which trainer, or the arguments cannot be read.
    """
    if not arguments or arguments[0] not in _TRL_PROGRAMS:
        raise UserError("the command line: trl is followed by grpo or ppo")
    trainer, *others = arguments
    dialect = _TRL_PROGRAMS[trainer]
    files = [argument for argument in others[:1] if _is_file(argument)]
    flags = others[len(files) :]
    values: dict[str, object] = {}
    if files and pathlib.Path(files[0]).suffix in (".yaml", ".yml"):
        values = hydra.read_yaml(pathlib.Path(files[0]))
    elif files or command is not None:
        script = command if command is not None else _read(files[0])
        words = shell.read_command(script, environment, _has_flags, "a trainer of TRL's")
        begin = next(place for place, word in enumerate(words) if word.startswith("--"))
        flags = [*words[begin:], *flags]
    values.update(_flags(flags))
    rows = _trl_rows(values) if rows is None else rows
    source = files[0] if files else f"flags of TRL's {trainer}"
    return Request(
        dialect, values, (), rows, source, pathlib.Path(source).stem if files else f"trl_{trainer}_run"
    )


def _trl_rows(values: Mapping[str, object]) -> int | None:
    named = values.get("dataset_name")
    return count_rows([str(pathlib.Path(named).expanduser())]) if isinstance(named, str) else None


def _is_file(argument: str) -> bool:
    return argument.endswith((".yaml", ".yml", ".sh", ".bash")) and "=" not in argument


def _read(file: str) -> str:
    try:
        return pathlib.Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def _is_program(word: str) -> bool:
    name = word.removesuffix(".py").replace("/", ".").rpartition(".")[2]
    return any(name.startswith(program) for program in _VERL_PROGRAMS)


def _starts_verl(words: Sequence[str]) -> bool:
    return any(map(_is_program, words))


def _has_flags(words: Sequence[str]) -> bool:
    return any(word.startswith("--") for word in words)


def _without_flags(words: Sequence[str], keep: bool) -> list[str]:
    """Turn Hydra's own flags into keys, or leave them out; what follows the program otherwise are overrides."""
    overrides: list[str] = []
    waiting = list(words)
    short = {"-cn": "--config-name", "-cp": "--config-path"}
    while waiting:
        word = waiting.pop(0)
        name, equals, value = short.get(word, word).partition("=")
        if name not in ("--config-name", "--config-path", "--config-dir"):
            overrides.append(word)
            continue
        if not equals and waiting:
            value = waiting.pop(0)
        if keep:
            overrides.append(f"{name.removeprefix('--')}='{value.removesuffix('.yaml')}'")
    return overrides


def _flags(words: Sequence[str]) -> dict[str, object]:
    """Read `--name value …`, `--name=value`, `--name` and `--no_name`; several values are a list."""
    values: dict[str, object] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            continue  # the program between a launcher's flags and its own
        name, equals, value = word.removeprefix("--").partition("=")
        following = [value] if equals else []
        while not equals and waiting and not waiting[0].startswith("--"):
            following.append(waiting.pop(0))
        items = [hydra.parse_value(item, word) for item in following]
        # A launcher's program comes behind a flag's value: `--num_processes 8 train.py --beta 0`.
        program = [place for place, item in enumerate(items) if str(item).endswith(".py") or item == "trl"]
        items = items[: program[0]] if program else items
        values[name.replace("-", "_")] = True if not items else items[0] if len(items) == 1 else items
    return values
