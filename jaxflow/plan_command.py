"""`--plan`: what would run where, in how many bytes and seconds, said and written without touching a device.

Knows the algorithm's roles and the tokenizer's size beside the config; the reckoning is in `mapping`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from jaxflow.checks import check, check_values
from jaxflow.config import Config
from jaxflow.data.source import load_tokenizer
from jaxflow.dataflow import load_dataflow
from jaxflow.mapping.asked import groups_of
from jaxflow.mapping.planning import plan_config
from jaxflow.mapping.program_table import describe_programs
from jaxflow.mapping.report import describe_plan, plan_json
from jaxflow.plan_programs import compile_plan, provide_devices
from jaxflow.tracking.timeline import Timeline, gantt
from jaxflow.types import UserError

_COLUMNS = 72  # of the drawn step


@dataclasses.dataclass(frozen=True)
class PlanFiles:
    """Where a plan is written beside the terminal; None: nowhere."""

    plan: Path | None
    timeline: Path | None


def players(config: Config) -> tuple[str, ...]:
    """Return the roles that play in a run: of the optional ones, those that a pool of the config has."""
    placed = {role for pool in config.cluster.pools.values() for role in pool.roles}
    generators = ("generator",) if "generator" in placed else ()
    return (*load_dataflow(config.algorithm.name).playing(placed), *generators)


def plan_lines(config: Config, files: PlanFiles, target: str) -> list[str]:
    """Plan the config, write the files asked for, and return it as lines; with its programs where a target is named."""
    check_values(config)
    # Before anything else makes JAX settle on the devices that are there.
    devices = provide_devices(groups_of(config), target) if target else ()
    vocabulary_size = load_tokenizer(config.data.task, config.data.tokenizer).vocabulary_size
    planned = plan_config(config, vocabulary_size, players(config))
    lines = describe_plan(planned.plan, planned.runners_up, planned.mends)
    lines += ["", *gantt(planned.plan.spans, _COLUMNS)]
    lines += _refusal(planned.config, vocabulary_size)
    if target:
        programs = compile_plan(planned.config, vocabulary_size, players(config), planned.plan.pools, devices)
        lines += ["", *describe_programs(list(programs), target)]
    if files.plan is not None:
        values = plan_json(planned.plan, planned.runners_up, planned.mends)
        _write(files.plan, json.dumps(values, indent=2) + "\n")
    if files.timeline is not None:
        _write(files.timeline, "")
        files.timeline.unlink()
        trace = Timeline(files.timeline, 1, lines.append)
        trace.write(1, planned.plan.spans)
        trace.close()
    return lines


def _refusal(config: Config, vocabulary_size: int) -> list[str]:
    """Return why a run of the planned config would not begin, whatever devices there were."""
    try:
        check(config, vocabulary_size, None)
    except UserError as error:
        return ["", "a run of this does not begin:", *str(error).splitlines()]
    return []


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
