"""Seconds per stage of a reinforcement-learning iteration, beside what this machine's matmul can do.

Runs the engine's own classes on random tokens; knows no controller, no workers' processes and no task.

    python experiments/throughput.py [--json FILE] [--quick] [--devices N --tensor T]

What is counted. A forward pass costs 2·(weights that multiply) + 4·L·N·H·(T/2) FLOPs per token: the embedding
look-up is free, attention is counted causal (half the square). Training counts three forward passes. What is
recomputed in the backward pass is not counted (remat would add a fourth forward pass), nor are the optimizer and
the softmax over the vocabulary. The share is of the fastest float32 matmul of a ladder of sizes, in the same
process on all its cores: once per second, and once per CPU second. The second share stays meaningful where other
processes take part of the machine, and says nothing of idle cores: for these there is CPU/wall.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxflow.algorithms.losses import ValueLoss
from jaxflow.config import Config, OptimizerConfig
from jaxflow.engine.generate import Generator
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import untruncated
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import TrainState, new_state, new_weights
from jaxflow.engine.train import Loss, Trainer
from jaxflow.engine.transition import transition
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import LanguageModel, Model, Params, ScalarModel, describe
from jaxflow.types import Experience, Prompts
from jaxflow.workers.rule import policy_loss
from jaxflow.workers.trained import optimizer_of

PROMPT_TOKENS = 64
RESPONSE_TOKENS = 64
LENGTH = PROMPT_TOKENS + RESPONSE_TOKENS
REPEATS = 3  # the fastest counts
MATMUL_SIZES = (1024, 2048, 3072, 4096)


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and how many sequences it takes at once."""

    name: str
    config: DecoderConfig
    sequences: int


def _case(name: str, sequences: int, vocabulary: int, width: int, layers: int, heads: int, mlp: int) -> Case:
    config = DecoderConfig(
        vocabulary_size=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        mlp_width=mlp,
        remat=False,
    )
    return Case(name, config, sequences)


CASES = (
    _case("1M", 64, vocabulary=512, width=128, layers=4, heads=4, mlp=512),
    _case("25M", 16, vocabulary=4096, width=512, layers=6, heads=8, mlp=1536),
    _case("100M", 16, vocabulary=8192, width=768, layers=12, heads=12, mlp=2048),
)


@dataclasses.dataclass(frozen=True)
class Timing:
    """The fastest of several calls."""

    seconds: float
    cpu_seconds: float  # of all threads of this process


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. Rates and shares are None for a stage without arithmetic."""

    model: str
    parameters: int
    stage: str
    seconds: float
    tokens: int
    flops: int
    gflops_per_second: float | None
    matmul_share: float | None  # of FLOP per second
    matmul_share_per_cpu_second: float | None  # of FLOP per CPU second
    cpu_per_wall: float


def forward_flops(config: DecoderConfig, tokens: int, context: float, outputs: int) -> int:
    """Return the FLOPs of a pass over `tokens` that look at `context` positions on average.

    `outputs` is the total width of head outputs: V for each token that needs logits, 1 for each value.
    """
    layer = 3 * config.width * config.mlp_width
    layer += 2 * config.width * config.head_width * (config.heads + config.kv_heads)
    attention = 4 * config.layers * config.heads * config.head_width * context
    return round(tokens * (2 * config.layers * layer + attention) + 2 * config.width * outputs)


def generation_flops(config: DecoderConfig, sequences: int) -> int:
    """Return the FLOPs of prefill (one row of logits per prompt) and of the decode steps behind it."""
    steps = RESPONSE_TOKENS - 1  # the first token comes out of the prefill
    vocabulary = config.padded_vocabulary_size
    prompt_tokens = sequences * PROMPT_TOKENS
    prefill = forward_flops(config, prompt_tokens, PROMPT_TOKENS / 2, sequences * vocabulary)
    mean_context = PROMPT_TOKENS + (steps + 1) / 2
    return prefill + forward_flops(config, sequences * steps, mean_context, sequences * steps * vocabulary)


def timed(call: Callable[[], Any]) -> Timing:
    """Time a call after a first one, which compiles."""
    jax.block_until_ready(call())
    timings = []
    for _ in range(REPEATS):
        cpu, started = time.process_time(), time.perf_counter()
        jax.block_until_ready(call())
        timings.append(Timing(time.perf_counter() - started, time.process_time() - cpu))
    return min(timings, key=lambda timing: timing.seconds)


@dataclasses.dataclass(frozen=True)
class Rate:
    """What is to be reached, in FLOP."""

    per_second: float
    per_cpu_second: float

    def or_better(self, other: Rate) -> Rate:
        """Return the best of two measurements, either way of counting."""
        return Rate(max(self.per_second, other.per_second), max(self.per_cpu_second, other.per_cpu_second))


def matmul_rate() -> Rate:
    """Return the best rates of square float32 products."""
    product = jax.jit(jnp.matmul)
    best = Rate(0.0, 0.0)
    for size in MATMUL_SIZES:
        square = jnp.ones((size, size), jnp.float32)
        timing = timed(lambda square=square: product(square, square))
        best = best.or_better(Rate(2 * size**3 / timing.seconds, 2 * size**3 / timing.cpu_seconds))
    return best


def _experience(case: Case) -> Experience:
    """Return full-length sequences of random tokens with random figures to learn from."""
    generator = np.random.default_rng(0)
    shape = (case.sequences, LENGTH)

    def normal() -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    return Experience(
        tokens=generator.integers(0, case.config.vocabulary_size, shape, np.int32),
        lengths=np.full(case.sequences, LENGTH, np.int32),
        response_mask=np.broadcast_to(np.arange(LENGTH) >= PROMPT_TOKENS, shape),
        actor_log_probs=np.full(shape, -math.log(case.config.vocabulary_size), np.float32),
        reference_log_probs=np.zeros(shape, np.float32),
        values=normal(),
        advantages=normal(),
        returns=normal(),
        policy_updates=np.zeros(case.sequences, np.int32),
    )


def _prompts(experience: Experience) -> Prompts:
    sequences = len(experience.lengths)
    ids = np.arange(sequences, dtype=np.int32)
    lengths = np.full(sequences, PROMPT_TOKENS, np.int32)
    return Prompts(experience.tokens[:, :PROMPT_TOKENS], lengths, ids, np.full_like(ids, -1), ids, 0, ())


class Training:
    """A model in training on one batch; its updates follow one another as in a run."""

    def __init__(self, model: Model, layout, params: Params, loss: Loss, tokens_per_device: int):
        optimizer = optimizer_of(OptimizerConfig(), REPEATS + 1)
        self._trainer = Trainer(model, layout, optimizer, loss, 1.0, tokens_per_device)
        self._state: TrainState = new_state(model, layout, optimizer.transformation(), params)

    def update(self, batch: Experience) -> TrainState:
        """Do one update of all sequences."""
        self._state, _ = self._trainer.update(self._state, batch)
        return self._state


def measure(case: Case, mesh: jax.sharding.Mesh) -> Iterator[tuple[str, int, int, Timing]]:
    """Yield stage, tokens, FLOPs and time of each stage of one iteration."""
    config, sequences = case.config, case.sequences
    tokens = sequences * LENGTH
    training, generation = training_layout(mesh), generation_layout(mesh)
    actor, critic = describe(config, LanguageModel), describe(config, ScalarModel)
    experience = _experience(case)
    scored = (experience.tokens, experience.lengths, experience.response_mask)
    budget = tokens // training.replicas
    of_actor = forward_flops(config, tokens, LENGTH / 2, tokens * config.padded_vocabulary_size)
    of_critic = forward_flops(config, tokens, LENGTH / 2, tokens)

    params = new_weights(actor, training, 0, 0)
    shardings = generation.weights(actor.names)
    yield "transition", 0, 0, timed(lambda: transition(params, shardings, "float32")[0])

    rollout_params, _ = transition(params, shardings, "float32")
    generator = Generator(actor, generation, "float32", sequences // generation.replicas)
    sampling = untruncated(RESPONSE_TOKENS)
    prompts = _prompts(experience)
    generate = timed(lambda: generator(rollout_params, prompts, sampling, 0, 0, 0, 0))
    yield "generate", sequences * RESPONSE_TOKENS, generation_flops(config, sequences), generate
    del rollout_params

    scorer = Scorer(actor, training, budget, 1.0)
    yield "score log-probs", tokens, of_actor, timed(lambda: scorer.log_probs(params, *scored))

    whole = Config()
    algorithm = whole.algorithm
    rollout = dataclasses.replace(whole.rollout, max_response_tokens=RESPONSE_TOKENS)
    loss = policy_loss(dataclasses.replace(whole, rollout=rollout))
    # The trainers take the weights over: each model's scoring comes first, and one is gone before the next.
    actor_training = Training(actor, training, params, loss, budget)
    yield "train actor", tokens, 3 * of_actor, timed(lambda: actor_training.update(experience))
    del actor_training, params

    values = new_weights(critic, training, 0, 1)
    value_scorer = Scorer(critic, training, budget, 1.0)
    yield "score values", tokens, of_critic, timed(lambda: value_scorer.values(values, *scored))
    value_loss = ValueLoss(algorithm.value_clip, algorithm.loss_aggregation, float(RESPONSE_TOKENS))
    critic_training = Training(critic, training, values, value_loss, budget)
    yield "train critic", tokens, 3 * of_critic, timed(lambda: critic_training.update(experience))


def _row(case: Case, stage: str, tokens: int, flops: int, timing: Timing, matmul: Rate) -> Row:
    has_arithmetic = flops > 0
    return Row(
        model=case.name,
        parameters=case.config.parameter_count,
        stage=stage,
        seconds=timing.seconds,
        tokens=tokens,
        flops=flops,
        gflops_per_second=flops / timing.seconds / 1e9 if has_arithmetic else None,
        matmul_share=flops / timing.seconds / matmul.per_second if has_arithmetic else None,
        matmul_share_per_cpu_second=(
            flops / timing.cpu_seconds / matmul.per_cpu_second if has_arithmetic else None
        ),
        cpu_per_wall=timing.cpu_seconds / timing.seconds,
    )


_HEADING = (
    "model  Mparam stage              seconds  tokens     GFLOP  GFLOP/s  share  share/CPU  CPU/wall\n"
    "-----  ------ ---------------- --------- ------- --------- -------- ------ ---------- ---------"
)


def _line(row: Row) -> str:
    def cell(value: float | None, width: int, form: str) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    return (
        f"{row.model:5} {row.parameters / 1e6:7.1f} {row.stage:16} {row.seconds:9.4f} {row.tokens:7d} "
        f"{row.flops / 1e9:9.1f} {cell(row.gflops_per_second, 8, '.1f')} {cell(row.matmul_share, 6, '.1%')} "
        f"{cell(row.matmul_share_per_cpu_second, 10, '.1%')} {row.cpu_per_wall:9.2f}"
    )


def main() -> None:
    """Measure, print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="the 1M model alone")
    parser.add_argument("--devices", type=int, default=1, help="simulated devices")
    parser.add_argument(
        "--tensor", type=int, default=1, help="tensor-parallel size in training, of the devices"
    )
    arguments = parser.parse_args()
    if arguments.devices % arguments.tensor != 0:
        parser.error(f"--tensor {arguments.tensor} does not divide --devices {arguments.devices}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    mesh = make_mesh(arguments.devices // arguments.tensor, 1, arguments.tensor, 1, jax.devices())

    load = os.getloadavg()[0]
    matmul, measured = matmul_rate(), []
    for case in CASES[:1] if arguments.quick else CASES:
        for stage in measure(case, mesh):
            measured.append((case, stage))
            print(f"{case.name} {stage[0]}: {stage[3].seconds:.4f} s", flush=True)
        # The yardstick again: another process on this machine slows both, and the fastest one counts.
        matmul = matmul.or_better(matmul_rate())
    rows = [_row(case, *stage, matmul) for case, stage in measured]

    hardware = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "devices": arguments.devices,
        "tensor": arguments.tensor,
        "load_average_at_start": load,
        "jax": jax.__version__,
    }
    print(f"\n{hardware}\nfloat32 matmul: {matmul.per_second / 1e9:.0f} GFLOP per second, ", end="")
    print(f"{matmul.per_cpu_second / 1e9:.0f} GFLOP per CPU second\n\n{_HEADING}")
    print("\n".join(_line(row) for row in rows))
    if arguments.json is not None:
        header = {"date": datetime.date.today().isoformat(), "hardware": hardware}
        header["matmul_gflops_per_second"] = matmul.per_second / 1e9
        header["matmul_gflops_per_cpu_second"] = matmul.per_cpu_second / 1e9
        table = header | {"rows": [dataclasses.asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
