"""How far the sampler's log-probs are from those of scoring the same tokens again, by the dtypes of both.

    python experiments/sampler_gap.py [--json FILE]

One set of weights, one code path, two ways through it: token by token with a cache, and whole sequences at once. What
a run logs every step as `training/rollout_log_probs_diff_*` is printed here for every pair of `rollout.dtype` and
`actor.model.compute_dtype`. Fresh weights say next to nothing: their tables are scaled until the distribution is as
sharp as a trained model's (its mean entropy is printed).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import platform
from collections.abc import Sequence

import jax
import numpy as np

from jaxflow.engine.generate import Generator
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import untruncated
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import new_weights
from jaxflow.engine.transition import transition
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import LanguageModel, Params, describe
from jaxflow.types import PromptRow, Prompts

MODELS = {
    "1M": DecoderConfig(vocabulary_size=512, width=128, layers=4, heads=4, kv_heads=2, tied_embeddings=True),
    "7M": DecoderConfig(
        vocabulary_size=4096, width=256, layers=8, heads=8, kv_heads=4, mlp_width=768, tied_embeddings=True
    ),
}
SEQUENCES, PROMPT_TOKENS, RESPONSE_TOKENS = 16, 16, 96
SHARPNESS = 8.0  # factor of the embedding table, which is the head as well


@dataclasses.dataclass(frozen=True)
class Row:
    """The gap under one pair of dtypes, in nats."""

    model: str
    rollout_dtype: str  # of generation: weights, activations' cache
    compute_dtype: str  # of activations, in generation and scoring alike
    log_probs_gap_mean: float
    log_probs_gap_max: float
    entropy_mean: float
    tokens: int


def _prompts(vocabulary: int) -> Prompts:
    generator, rows = np.random.default_rng(0), np.arange(SEQUENCES, dtype=np.int32)
    tokens = generator.integers(0, vocabulary, (SEQUENCES, PROMPT_TOKENS)).astype(np.int32)
    lengths = np.full(SEQUENCES, PROMPT_TOKENS, np.int32)
    row = PromptRow("", (), "", "random", {})
    return Prompts(tokens, lengths, rows, np.full_like(rows, -1), rows, 0, (row,) * SEQUENCES)


def measure(name: str, rollout_dtype: str, compute_dtype: str) -> Row:
    """Generate, score the same tokens, and compare."""
    config = dataclasses.replace(MODELS[name], compute_dtype=compute_dtype)
    model, mesh = describe(config, LanguageModel), make_mesh(1, 1, 1, 1, jax.devices()[:1])
    training, generation = training_layout(mesh, config), generation_layout(mesh, config)
    drawn = new_weights(model, training, 0, 0)
    backbone = drawn["backbone"] | {"embedding": SHARPNESS * drawn["backbone"]["embedding"]}
    params: Params = drawn | {"backbone": backbone}
    sampled_with, _ = transition(params, generation.weights(model.names), rollout_dtype)
    sampling = untruncated(RESPONSE_TOKENS)
    generator = Generator(model, generation, rollout_dtype, SEQUENCES)
    weights = generator.unstacked(sampled_with, keep=params)
    rollout = generator.generate(
        weights, _prompts(config.vocabulary_size), sampling, seed=0, step=0, purpose=0, policy_updates=0
    )
    scorer = Scorer(model, training, SEQUENCES * (PROMPT_TOKENS + RESPONSE_TOKENS), 1.0)
    scored = scorer.log_probs(params, rollout.tokens, rollout.lengths, rollout.response_mask)
    gap = np.abs(rollout.rollout_log_probs - scored.log_probs)[rollout.response_mask]
    return Row(
        model=name,
        rollout_dtype=rollout_dtype,
        compute_dtype=compute_dtype,
        log_probs_gap_mean=float(gap.mean()),
        log_probs_gap_max=float(gap.max()),
        entropy_mean=float(-rollout.rollout_log_probs[rollout.response_mask].mean()),
        tokens=int(rollout.response_mask.sum()),
    )


def hardware() -> dict[str, str | int]:
    """Return what the figures were made on."""
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every pair, print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows to this file")
    flags = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    dtypes, rows = ("float32", "bfloat16"), []
    print("model rollout.dtype compute_dtype  mean gap   max gap   entropy  (nats)")
    for name, *pair in itertools.product(MODELS, dtypes, dtypes):
        row = measure(name, *pair)
        print(
            f"{row.model:5} {row.rollout_dtype:13} {row.compute_dtype:13} {row.log_probs_gap_mean:9.2e} "
            f"{row.log_probs_gap_max:9.2e} {row.entropy_mean:9.2f}",
            flush=True,
        )
        rows.append(row)
    if flags.json is not None:
        header = {"date": datetime.date.today().isoformat(), "hardware": hardware()}
        table = {**header, "rows": [dataclasses.asdict(row) for row in rows]}
        flags.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
