"""Predicted against measured seconds of each call of a step, placement by placement.

    python experiments/plan_vs_measured.py [--config FILE …] [--profile FILE] [--json FILE] [-- --config.x=y …]

Calibrates this machine (or takes a profile that is there, or a device kind by its name), then for each config plans
it and runs it: `jaxflow.main` as anyone would start it, every response at its limit, as plans assume. Compared are the
plan's timeline and the run's, call by call; medians over all steps but the first two, which compile. A call's seconds
are those inside the workers, from the first process's start to the last one's end: waiting for each other is in them,
waiting for another call of the pool and for the controller is not; the step has it all. What stands
behind `--` goes to both, so that a larger model on a GPU is the same command. Run it on a machine that does nothing
else: simulated devices share its cores with whatever runs.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ("configs/ppo_tiny.py", "configs/ppo_split.py", "configs/ppo_standalone.py")
COMPILING_STEPS = 2
AIM = 0.25

Calls = Mapping[tuple[str, str, str], float]
"""Seconds of a step by (pool, role, stage), all parts of a call together."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of one placement."""

    placement: str
    pool: str
    role: str
    stage: str
    predicted: float
    measured: float

    @property
    def off(self) -> float:
        """Return predicted / measured − 1."""
        return self.predicted / self.measured - 1.0


@dataclasses.dataclass(frozen=True)
class Placement:
    """One config, planned and run."""

    name: str
    predicted_step: float
    measured_step: float
    rows: tuple[Row, ...]


def command(*arguments: str) -> None:
    """Run a module of jaxflow; its output is shown if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def calls_of(spans: Sequence[Mapping[str, object]]) -> Calls:
    """Add up the spans of one step; a switch is inside the call that generates, in a run and here."""
    seconds: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for span in spans:
        name = "gen" if span["name"] == "transition" else span["name"]
        seconds[span["pool"], span["role"], name] += span["seconds"]
    return seconds


def planned(config: str, kind: str, extra: Sequence[str], folder: pathlib.Path) -> tuple[float, Calls]:
    """Return a plan's step and calls; of these what the workers take, without the controller between them."""
    file = folder / "plan.json"
    command(
        "jaxflow.main",
        f"--config={config}",
        "--plan",
        f"--plan_json={file}",
        f"--config.cluster.devices.kind={kind}",
        *extra,
    )
    plan = json.loads(file.read_text())
    seconds = dict(calls_of(plan["spans"]))
    for pool in plan["pools"]:
        for call in pool["calls"]:
            if call["stage"] != "transition":  # its seconds are those of the call that generates
                seconds[pool["name"], call["role"], call["stage"]] -= call["controller_seconds"]
    return plan["step_seconds"], seconds


def measured(
    config: str, steps: int, extra: Sequence[str], folder: pathlib.Path
) -> tuple[float, list[Calls]]:
    """Run a config; return the median step and each step's calls, without the steps that compile."""
    workdir = folder / pathlib.Path(config).stem
    command(
        "jaxflow.main",
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.run.total_steps={steps}",
        "--config.rollout.ignore_end_token=True",
        *extra,
    )
    events = json.loads((workdir / "timeline.json").read_text())
    pools = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    whole: list[float] = []
    steps_of: dict[int, list[dict[str, object]]] = collections.defaultdict(list)
    for event in events:
        if event["ph"] != "X" or event["args"]["step"] <= COMPILING_STEPS:
            continue
        if event["cat"] == "step":
            whole.append(event["dur"] / 1e6)
        elif event["cat"] != "transition":  # drawn inside the call that waits for it
            span = {"pool": pools[event["tid"]], "role": event["args"]["role"], "name": event["cat"]}
            steps_of[event["args"]["step"]].append({**span, "seconds": event["dur"] / 1e6})
    return statistics.median(whole), [calls_of(spans) for spans in steps_of.values()]


def compare(config: str, kind: str, steps: int, extra: Sequence[str], folder: pathlib.Path) -> Placement:
    """Plan and run one config."""
    name = pathlib.Path(config).stem
    predicted_step, predicted = planned(config, kind, extra, folder)
    measured_step, runs = measured(config, steps, extra, folder)
    rows = tuple(
        Row(name, *key, seconds, statistics.median(run[key] for run in runs))
        for key, seconds in predicted.items()
    )
    return Placement(name, predicted_step, measured_step, rows)


def table(placements: Sequence[Placement]) -> list[str]:
    """Return the comparison as lines: each call, each step, the share within the aim, the order."""
    lines = [
        f"{'placement':<16} {'pool':<10} {'role':<10} {'call':<14} {'predicted':>10} {'measured':>10} {'off':>6}"
    ]
    for placement in placements:
        for row in placement.rows:
            lines.append(
                f"{row.placement:<16} {row.pool:<10} {row.role:<10} {row.stage:<14} {row.predicted:>8.3f} s"
                f" {row.measured:>8.3f} s {row.off:>+6.0%}"
            )
        off = placement.predicted_step / placement.measured_step - 1.0
        lines.append(
            f"{placement.name:<16} {'':<10} {'':<10} {'step':<14} {placement.predicted_step:>8.3f} s"
            f" {placement.measured_step:>8.3f} s {off:>+6.0%}"
        )
    rows = [row for placement in placements for row in placement.rows]
    near = sum(abs(row.off) <= AIM for row in rows)
    lines.append(f"within {AIM:.0%}: {near} of {len(rows)} calls")
    for what in ("predicted", "measured"):
        order = sorted(placements, key=lambda one, what=what: vars(one)[f"{what}_step"])
        lines.append(f"order {what:<10} {' < '.join(placement.name for placement in order)}")
    return lines


def main() -> None:
    """Calibrate, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", action="append", help="a config; three placements of ppo_tiny if none")
    parser.add_argument(
        "--profile", default="", help="a profile of calibrate's, or a kind; empty: calibrate now"
    )
    parser.add_argument("--devices", type=int, default=4, help="simulated devices to calibrate with")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("extra", nargs="*", help="behind --: what else jaxflow.main is given")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, kind = pathlib.Path(name), asked.profile
        if not kind:
            kind = str(folder / "here.json")
            command("jaxflow.mapping.calibrate", f"--out={kind}", f"--devices={asked.devices}")
        profile = json.loads(pathlib.Path(kind).read_text()) if kind.endswith(".json") else kind
        configs = asked.config or CONFIGS
        placements = [compare(config, kind, asked.steps, asked.extra, folder) for config in configs]
    for line in table(placements):
        print(line)
    if asked.json is not None:
        written = {
            "date": datetime.date.today().isoformat(),
            "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
            "profile": profile,
            "placements": [dataclasses.asdict(placement) for placement in placements],
        }
        asked.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
