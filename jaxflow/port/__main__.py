"""The command line of `jaxflow.port`: another stack's config in, a config file of jaxflow's and a report out.

    python -m jaxflow.port verl CONFIG.yaml [key=value …]
    python -m jaxflow.port verl SCRIPT.sh
    python -m jaxflow.port verl --command "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo …"
    python -m jaxflow.port trl grpo|ppo ARGS.yaml|SCRIPT.sh [--flag value …]
    python -m jaxflow.port verl|trl --table

Options of its own: --out=FILE.py (default: beside you, named as the input), --force (write over it), --rows=N
(prompts in the training files, where they are not on this machine). A script is read, never run.

Exit codes: 0 written, whatever is unsupported is listed; 2 refused, with the reason.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
from collections.abc import Sequence

from jaxflow.command_line import run
from jaxflow.port import inputs
from jaxflow.port.inputs import Request
from jaxflow.port.report import command, config_file, report, table
from jaxflow.port.translate import translate
from jaxflow.port.trl import TRL_GRPO, TRL_PPO
from jaxflow.port.verl import VERL
from jaxflow.types import UserError


@dataclasses.dataclass(frozen=True)
class _Options:
    out: pathlib.Path | None
    force: bool
    rows: int | None
    command: str | None
    table: bool
    rest: tuple[str, ...]  # what belongs to the dialect


def _options(arguments: Sequence[str]) -> _Options:
    """Take our own options out of the arguments."""
    named: dict[str, str] = {}
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in ("out", "rows", "command", "force", "table"):
            rest.append(argument)
        elif name in ("force", "table"):
            named[name] = "yes"
        elif equals:
            named[name] = value
        elif waiting:
            named[name] = waiting.pop(0)
        else:
            raise UserError(f"the command line: --{name} needs a value")
    rows = named.get("rows")
    if rows is not None and not rows.isdecimal():
        raise UserError(f"the command line: --rows={rows}: expected a number of prompts")
    return _Options(
        out=pathlib.Path(named["out"]) if "out" in named else None,
        force="force" in named,
        rows=None if rows is None else int(rows),
        command=named.get("command"),
        table="table" in named,
        rest=tuple(rest),
    )


def _request(dialect: str, options: _Options) -> Request:
    if dialect == "verl":
        return inputs.of_verl(options.rest, options.command, options.rows, os.environ)
    return inputs.of_trl(options.rest, options.command, options.rows, os.environ)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(__doc__)
        return 0
    dialect, *others = arguments
    if dialect not in ("verl", "trl"):
        raise UserError(f"the command line: {dialect!r} is no stack known here; it is verl or trl")
    options = _options(others)
    if options.table:
        print("\n\n".join(table(one) for one in ((VERL,) if dialect == "verl" else (TRL_GRPO, TRL_PPO))))
        return 0
    request = _request(dialect, options)
    translation = translate(request.dialect, request.values, request.removed, request.rows)
    out = pathlib.Path(f"{request.stem}.py") if options.out is None else options.out
    if out.exists() and not options.force:
        raise UserError(f"{out} is there already: give --force to write over it, or another --out=FILE.py")
    out.write_text(config_file(translation, request.source), encoding="utf-8")
    print(report(translation))
    print(
        f"\nwrote {out}; to see what it amounts to, add --print_config to\n  {command(translation, str(out))}"
    )
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who reads the report may have seen enough, as `head` has
    run(main)
