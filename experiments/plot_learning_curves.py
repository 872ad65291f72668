"""Draws what learning_curves.py keeps of its runs.

    python -m experiments.plot_learning_curves

Knows the names of runs and metrics, nothing of how runs are made. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import matplotlib

from experiments.curve_runs import REVERSAL, SEEDS, STORE, rows_of
from experiments.learning_curves import ACCURACY, ENOUGH, attainable_help, tokens_until


def main() -> None:
    """Draw all pictures anew, into the folder of the runs' results."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    draw_reversal(pyplot, SEEDS["reversal"])
    draw_reward_against_kl(pyplot, SEEDS["wishes"])
    draw_safe_rlhf(pyplot, SEEDS["wishes"])


def draw_reversal(pyplot: Any, seeds: Sequence[int]) -> None:
    """Draw what is answered right against steps and against tokens, the seeds of an algorithm in one colour."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for number, name in enumerate(REVERSAL):
        for seed in seeds:
            rows = rows_of(name, seed)
            until = tokens_until(rows)
            points = [(int(row["step"]), row[ACCURACY]) for row in rows if ACCURACY in row]
            values = [value for _, value in points]
            style = {"color": f"C{number}", "linewidth": 1.4, "label": name if seed == seeds[0] else None}
            panels[0].plot([step for step, _ in points], values, **style)
            panels[1].plot([until[step] for step, _ in points], values, **style)
    for panel, label in zip(panels, ("step", "10^6 tokens, prompts and responses"), strict=True):
        panel.axhline(ENOUGH, color="grey", linewidth=0.8, linestyle="--")
        panel.set_xlabel(label)
    panels[0].set_ylabel("exact match, held out")
    panels[0].legend()
    _save(figure, "reversal")


def draw_reward_against_kl(pyplot: Any, seeds: Sequence[int]) -> None:
    """Draw what PPO's learned reward says and what it is worth, against the distance from the policy it began as."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for panel, (label, key) in zip(
        panels,
        {"learned reward": "critic/score/mean", "hidden help (gold)": "reward/help/mean"}.items(),
        strict=True,
    ):
        for seed in seeds:
            rows = [row for row in rows_of("ppo_learned_reward", seed) if key in row]
            distance = [row["actor/reward_kl_penalty"] * row["response_length/mean"] for row in rows]
            panel.plot(distance, [row[key] for row in rows], marker=".", linewidth=0.8, label=f"seed {seed}")
        panel.set_xlabel("KL to the reference, nats per response")
        panel.set_ylabel(label)
    panels[0].legend()
    _save(figure, "reward_against_kl")


def draw_safe_rlhf(pyplot: Any, seeds: Sequence[int]) -> None:
    """Draw cost, harm, help and λ of Safe-RLHF, and harm and help of PPO on the same reward alone."""
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 7), sharex=True)
    keys = {
        "learned cost (threshold dashed)": "constraint/cost/mean",
        "λ": "constraint/multiplier",
        "hidden harm (gold), 0 dashed": "reward/harm/mean",
        "hidden help (gold), best at harm 0 dashed": "reward/help/mean",
    }
    for panel, (label, key) in zip(panels.flat, keys.items(), strict=True):
        for number, name in enumerate(("safe_rlhf", "ppo_learned_reward")):
            for seed in seeds:
                rows = [row for row in rows_of(name, seed) if key in row]
                if rows:
                    label_once = name if seed == seeds[0] else None
                    steps, values = [row["step"] for row in rows], [row[key] for row in rows]
                    panel.plot(steps, values, color=f"C{number}", linewidth=1.2, label=label_once)
        panel.set_ylabel(label)
    threshold = rows_of("safe_rlhf", seeds[0])[-1]["constraint/threshold"]
    for panel, level in (
        (panels[0, 0], threshold),
        (panels[1, 0], 0.0),
        (panels[1, 1], attainable_help(0.0)),
    ):
        panel.axhline(level, color="grey", linewidth=0.8, linestyle="--")
    panels[1, 1].legend()
    for panel in panels[1]:
        panel.set_xlabel("step")
    _save(figure, "safe_rlhf")


def _save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(STORE / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
