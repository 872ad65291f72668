"""Draws a run's curve: validation accuracy and training accuracy against steps, from its metrics.jsonl.

    python experiments/plot_curve.py runs/ppo_tiny/TIME/metrics.jsonl --out experiments/ppo_tiny.png

Knows metric names, nothing of the run. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

from jaxflow.tracking.metrics import GLOBAL_STEP, read_metrics

_CURVES = {
    "validation (greedy)": "val-core/all/acc/mean@1",
    "training samples": "reward/accuracy_mean",
}


def main() -> None:
    """Read the rows, draw the picture, print the ends of each curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(arguments.metrics)
    figure, (accuracy, divergence) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 6), height_ratios=(2, 1))
    for label, name in _CURVES.items():
        points = [(row[GLOBAL_STEP], row[name]) for row in rows if name in row]
        accuracy.plot(*zip(*points, strict=True), marker="o" if label.startswith("val") else "", label=label)
        print(
            f"{label}: {points[0][1]:.3f} (step {points[0][0]:.0f}) → {points[-1][1]:.3f} (step {points[-1][0]:.0f})"
        )
    accuracy.axhline(0.9, color="grey", linewidth=0.8, linestyle="--")
    accuracy.set_ylabel("exact match")
    accuracy.set_ylim(0, 1)
    accuracy.legend()
    points = [
        (row[GLOBAL_STEP], row["actor/reward_kl_penalty"]) for row in rows if "actor/reward_kl_penalty" in row
    ]
    divergence.plot(*zip(*points, strict=True), color="tab:red")
    divergence.set_ylabel("KL to the reference\n(nats per token)")
    divergence.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=120)


if __name__ == "__main__":
    main()
