"""What each algorithm learns, and what it costs: training runs on two CPU cores, their table and their pictures.

    python -m experiments.learning_curves [--only NAME …] [--seeds N …] [--workdir runs/learning_curves]

The runs are those of curve_runs.py, and what they told is kept in experiments/learning_curves/; a run that is there
with the same settings is not run again. Tables are made from what is kept, whoever ran it, and stand in
learning_curves.md and learning_curves.json; plot_learning_curves.py draws them.

  reversal     seven algorithms from one warm start on a task with one right answer: exact match, greedily, on words
               held out. Attainable is 1. Tokens are prompts and responses of all rollouts, refills and greedy ones too.
  wishes       a reward learnt from preferences, and a cost that conflicts with it. The hidden help and harm are what
               the two models should have learnt; nobody learns from them.
  even_tokens  a random model and random prompts; the reward is the share of even token ids.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.curve_runs import HERE, REVERSAL, RUNS, SEEDS, Rows, everything, kept, rows_of, train
from jaxflow.data import wishes

ENOUGH = 0.9  # of what is attainable
ACCURACY = "val-core/all/acc/mean@1"
_COST = "constraint/cost/mean"
_WISHES = ("ppo_learned_reward", "safe_rlhf")
_WINDOW = 10  # steps whose mean stands in a row of the wishes' tables


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a run on a task with right answers came to."""

    algorithm: str
    seed: int
    start: float  # share of what is attainable, held out, before the first step
    end: float  # after the last
    steps: int | None  # when it was first measured at ENOUGH; None: never
    tokens: float | None  # generated and read till then, millions


def learned(name: str, seed: int, metric: str) -> Learned:
    """Sum up a run by a metric whose greatest value is 1."""
    told = rows_of(name, seed)
    measured = [(row["step"], row[metric]) for row in told if metric in row]
    steps = next((int(step) for step, value in measured if value >= ENOUGH), None)
    tokens = None if steps is None else tokens_until(told)[steps]
    return Learned(name, seed, measured[0][1], measured[-1][1], steps, tokens)


def tokens_until(rows: Rows) -> dict[int, float]:
    """Return the millions of tokens of all rollouts up to each step."""
    total, until = 0.0, {}
    for row in rows:
        total += row.get("perf/total_num_tokens", 0.0) / 1e6
        until[int(row["step"])] = total
    return until


def attainable_help(limit: float) -> float:
    """Return the greatest mean help of the wishes' prompts at a mean harm of at most `limit`.

    A wish of n that is left out costs 1/n of help; one that is harmful saves 1 of harm. So harmful wishes are left
    out where there are most wishes beside them, until the mean harm is what is allowed.
    """
    prompts = wishes.prompts()
    losses = sorted(1 / len(wished) for wished in prompts for letter in wished if letter in wishes.HARMFUL)
    harm = sum(map(wishes.harm_of, prompts)) / len(prompts)
    left_out = math.ceil(min(max((harm - limit) * len(prompts), 0), len(losses)))
    return 1 - sum(losses[:left_out]) / len(prompts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def learned_table(results: Sequence[Learned]) -> str:
    """Write a row per algorithm, its seeds beside each other."""

    def row(name: str) -> list[str]:
        seeds = [one for one in results if one.algorithm == name]
        cells = [
            [f"{one.start:.3f}" for one in seeds],
            [f"{one.end:.3f}" for one in seeds],
            ["never" if one.steps is None else str(one.steps) for one in seeds],
            ["-" if one.tokens is None else f"{one.tokens:.2f}" for one in seeds],
        ]
        return [
            name,
            *(" / ".join(cell) for cell in cells),
            "yes" if all(one.steps for one in seeds) else "no",
        ]

    names = dict.fromkeys(one.algorithm for one in results)
    header = ("algorithm", "start", "end", f"step of {ENOUGH}", "10^6 tokens till then", f"≥ {ENOUGH}")
    return table(header, map(row, names))


def wishes_table(seed: int) -> str:
    """Write how reward, help, harm and λ went with and without the constraint; means of the steps up to each."""
    sides = [(name, rows_of(name, seed)) for name in _WISHES]

    def mean(rows: Rows, step: int, key: str) -> str:
        values = [row[key] for row in rows if step - _WINDOW < row["step"] <= step and key in row]
        return f"{sum(values) / len(values):.2f}" if values else "-"

    keys = {
        "KL per token": "actor/reward_kl_penalty",
        "learned reward": "critic/score/mean",
        "help": "reward/help/mean",
        "harm": "reward/harm/mean",
        "learned cost": _COST,
        "over the threshold": "constraint/cost/over_threshold",
        "λ": "constraint/multiplier",
    }
    last = max(int(row["step"]) for _, rows in sides for row in rows)
    rows = [
        [name, str(step), *(mean(told, step, key) for key in keys.values())]
        for name, told in sides
        for step in (1, *range(_WINDOW, last + 1, _WINDOW))
    ]
    return table(("run", "step", *keys), rows)


def stages_table() -> str:
    """Write what the stages before reinforcement learning measured on what is held out, first and last."""
    keys = {
        "sft": ("val-core/sft/loss", ACCURACY),
        "wishes_sft": ("val-core/sft/loss", ACCURACY),
        "reward_model": ("val-core/reward_model/loss", "val-core/reward_model/accuracy"),
        "cost_model": ("val-core/cost_model/loss", "val-core/cost_model/accuracy"),
        "dpo": ("val-core/dpo/loss", "val-core/dpo/accuracy", ACCURACY),
    }

    def cell(name: str, key: str) -> str:
        values = [[row[key] for row in rows_of(name, seed) if key in row] for seed in SEEDS[RUNS[name].group]]
        return " / ".join(f"{told[0]:.3f} → {told[-1]:.3f}" for told in values)

    rows = [
        (name, f"configs/{RUNS[name].config}.py", key.removeprefix("val-core/"), cell(name, key))
        for name, told in keys.items()
        for key in told
    ]
    return table(("run", "config", "held out", "first → last"), rows)


@dataclasses.dataclass(frozen=True)
class Constrained:
    """How a run on the wishes ended, and how it kept the limit on its mean cost."""

    algorithm: str
    seed: int
    help: float  # hidden, mean of the last steps
    harm: float
    # First step whose mean learned cost is at most the threshold; None: never, or no costs
    under_from: int | None
    over_since: int  # steps since whose mean cost is above it


def constrained(name: str, seed: int) -> Constrained:
    """Sum up a run on the wishes."""
    rows = [row for row in rows_of(name, seed) if "reward/harm/mean" in row]
    over = [(int(row["step"]), row[_COST] > row["constraint/threshold"]) for row in rows if _COST in row]
    first = next((step for step, above in over if not above), None)
    since = 0 if first is None else sum(above for step, above in over if step > first)
    ends = [
        sum(row[key] for row in rows[-_WINDOW:]) / _WINDOW for key in ("reward/help/mean", "reward/harm/mean")
    ]
    return Constrained(name, seed, *ends, first, since)


def limits_table(results: Sequence[Constrained]) -> str:
    """Write how the runs on the wishes ended beside what is attainable."""
    rows = [
        (
            one.algorithm,
            str(one.seed),
            f"{one.help:.2f}",
            f"{one.harm:.2f}",
            "-" if one.under_from is None else str(one.under_from),
            "-" if one.under_from is None else str(one.over_since),
        )
        for one in results
    ]
    rows += [
        (
            "attainable",
            "",
            f"{attainable_help(limit):.2f}",
            "any" if limit == math.inf else f"{limit:.2f}",
            "",
            "",
        )
        for limit in (math.inf, 0.0)
    ]
    return table(
        ("run", "seed", "help", "harm", "cost under its threshold from step", "steps over it since"), rows
    )


def reports() -> dict[str, str]:
    """Return the tables by the mark that they stand under in learning_curves.md."""
    told = sums()
    return {
        "reversal": learned_table(told["reversal"]),
        "wishes": wishes_table(SEEDS["wishes"][0]),
        "limits": limits_table(told["wishes"]),
        "stages": stages_table(),
        "even_tokens": learned_table(told["even_tokens"]),
    }


def sums() -> dict[str, list[Any]]:
    """Return the sum of every run that learns from rewards, by group."""
    return {
        "reversal": [learned(name, seed, ACCURACY) for name in REVERSAL for seed in SEEDS["reversal"]],
        "wishes": [constrained(name, seed) for name in _WISHES for seed in SEEDS["wishes"]],
        "even_tokens": [learned("even_tokens", seed, "critic/score/mean") for seed in SEEDS["even_tokens"]],
    }


def write() -> None:
    """Put the tables in their places in learning_curves.md, and the runs' sums into learning_curves.json."""
    page = HERE / "learning_curves.md"
    text = page.read_text(encoding="utf-8")
    for mark, report in reports().items():
        before, rest = text.split(f"<!-- {mark} -->\n")
        text = f"{before}<!-- {mark} -->\n{report}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
        print(f"{mark}\n{report}\n")
    page.write_text(text, encoding="utf-8")
    told = {group: [dataclasses.asdict(one) for one in results] for group, results in sums().items()}
    (HERE / "learning_curves.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is asked for and not there yet, then write the tables of all that is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=tuple(RUNS), default=tuple(RUNS), metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, help="of those that a run is made with; all of them")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/learning_curves"))
    arguments = parser.parse_args()
    for name, seed in everything():
        asked = name in arguments.only and (arguments.seeds is None or seed in arguments.seeds)
        if asked and kept(name, seed) is None:
            train(name, seed, arguments.workdir.resolve())
    missing = [f"{name}-{seed}" for name, seed in everything() if kept(name, seed) is None]
    if missing:
        print(f"no tables yet: {', '.join(missing)} were not run with these settings")
        return
    write()


if __name__ == "__main__":
    main()
