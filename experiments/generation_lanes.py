"""Tokens per second of generation on a CPU with one lane and with two, by model, batch and case.

    python experiments/generation_lanes.py [--models M …] [--batches B …] [--cases C …]

The loads are those of generation.py: forced lengths, all equal (fixed) or most short (long_tail). The same weights and
requests run with one lane and with two, in turn; the fastest of three runs each counts, behind one that compiles. Both
draw the same tokens. `default` says what the engine takes by itself (engine/lanes.py); when another number is faster
than that, its thresholds should follow.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
from generation_sides import ON_CPU, Load, tail_lengths

from jaxflow.engine.generate import Generator
from jaxflow.engine.lanes import lanes_of
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import untruncated
from jaxflow.engine.sharding import generation_layout
from jaxflow.engine.state import new_weights
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.types import PromptRow, Prompts

LANES = (1, 2)
TURNS = 3


def requests(load: Load, count: int) -> Prompts:
    """Return prompts of random tokens."""
    shape = (count, load.prompt_tokens)
    tokens = np.random.default_rng(0).integers(0, load.config.vocabulary_size, shape).astype(np.int32)
    rows = np.arange(count, dtype=np.int32)
    row = PromptRow("", (), "", "random", {})
    widths = np.full(count, load.prompt_tokens, np.int32)
    return Prompts(tokens, widths, rows, np.full_like(rows, -1), rows, 0, (row,) * count)


def measure(load: Load, batch: int, case: str) -> None:
    """Measure one case and print its line."""
    layout = generation_layout(make_mesh(1, 1, 1, 1, jax.devices()[:1]), load.config)
    model = describe(load.config, LanguageModel)
    generators = {
        lanes: Generator(model, layout, load.dtype, sequences_per_device=batch, lanes=lanes)
        for lanes in LANES
    }
    weights = generators[1].unstacked(new_weights(model, layout, 0, 0), keep={})
    count = batch if case == "fixed" else load.tail_requests
    lengths = np.full(count, load.response_tokens, np.int32)
    if case == "long_tail":
        lengths = tail_lengths(count, load.response_tokens, seed=1)
    prompts, sampling = requests(load, count), untruncated(load.response_tokens)
    seconds = dict.fromkeys(LANES, float("inf"))
    drawn = {}
    for turn in range(1 + TURNS):
        for lanes, generator in generators.items():
            started = time.perf_counter()
            rollout = generator.generate(weights, prompts, sampling, 0, 0, 0, 0, limits=lengths)
            if turn > 0:
                seconds[lanes] = min(seconds[lanes], time.perf_counter() - started)
            drawn[lanes] = rollout.tokens
    assert all(np.array_equal(tokens, drawn[1]) for tokens in drawn.values())
    rates = " ".join(f"{lengths.sum() / each:9.0f}" for each in seconds.values())
    default = lanes_of(load.config, layout, batch)
    print(
        f"{load.model:6} {batch:5d} {case:10} {rates} {seconds[1] / seconds[2]:6.2f}x {default:8d}",
        flush=True,
    )


def main() -> None:
    """Measure and print the table."""
    jax.config.update("jax_platforms", "cpu")
    parser = argparse.ArgumentParser(description="Tokens per second of generation with one lane and two.")
    parser.add_argument("--models", nargs="+", default=[load.model for load in ON_CPU])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--cases", nargs="+", default=["fixed", "long_tail"])
    asked = parser.parse_args()
    print(f"{'model':6} {'batch':>5} {'case':10} {'one lane':>9} {'two':>9} {'two/one':>7} {'default':>8}")
    for load in ON_CPU:
        for batch in asked.batches if load.model in asked.models else ():
            for case in asked.cases:
                measure(load, batch, case)


if __name__ == "__main__":
    main()
