"""Tokens per second of generation, beside Hugging Face transformers' `generate` in one process on the same machine.

    python experiments/generation.py [--json FILE] [--device cpu|gpu] [--models M …] [--batches B …] [--cases C …]
                                     [--baselines B …] [--threads N] [--quick]

Both sides have the same random weights (exported by jaxflow in Hugging Face's form), the same prompts and the same
lengths, and sample at temperature 1. Nothing ends a response but its length:
  fixed      one batch, every response of the same length
  long_tail  many requests whose lengths fall off exponentially, the longest at the limit.
             jaxflow gets all at once and as many slots as a batch has rows; transformers runs batch after batch,
             each until its longest response is there. Only the tokens that were asked for are counted.
transformers runs eagerly with its own growing cache, and compiled (torch.compile) with a static one; the better of
the two is the baseline. The sides take turns, each after a run that warms it up; the fastest of each counts.

The limit is what the arithmetic takes at this machine's measured matmul rate, or what the bytes (weights and keys
and values, read once per step) take at its measured read rate, whichever is more. `--json` writes a list of rows;
rows of other models, batches and cases that the file has already are kept and printed with the new ones, so that a
table can be measured in parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers

from jaxflow.engine.generate import Generator
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import new_weights
from jaxflow.engine.transition import transition
from jaxflow.mapping.calibrate import bench, matmul_ladder, read_bandwidth
from jaxflow.models.config_json import write_config
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.presets import preset
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.models.weights_out import entries_of, write_checkpoint
from jaxflow.types import PromptRow, Prompts

MEAN_SHARE = 0.2  # of the limit: the mean length before the longest are cut to the limit
REPEATS = 2


@dataclasses.dataclass(frozen=True)
class Load:
    """One model and what it is asked."""

    model: str
    config: DecoderConfig
    dtype: str
    batches: tuple[int, ...]
    prompt_tokens: int
    response_tokens: int  # the limit
    tail_requests: int  # of the long tail


@dataclasses.dataclass(frozen=True)
class Row:
    """One case, measured."""

    model: str
    batch: int
    case: str  # fixed | long_tail
    tokens_per_second: float
    baseline: str  # the better of transformers eager and compiled
    baseline_tokens_per_second: float
    ratio: float
    eager_tokens_per_second: float | None
    compiled_tokens_per_second: float | None
    compiled_failure: str  # why there is no compiled run; empty: there is one
    limit_tokens_per_second: float
    limit_share: float
    limited_by: str  # arithmetic | bytes
    share_of_fixed: float | None  # of the long tail: of the rate with fixed lengths at the same batch
    parameters: int
    requests: int
    tokens: int
    prompt_tokens: int
    response_tokens: int
    dtype: str
    matmul_flops_per_second: float
    read_bytes_per_second: float
    hardware: str
    date: str


def _decoder(width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, vocabulary: int):
    return DecoderConfig(
        vocabulary_size=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        mlp_width=mlp_width,
        tied_embeddings=True,
    )


ON_CPU = (
    Load("1M", _decoder(128, 4, 4, 2, 512, 512), "float32", (16, 64), 64, 128, 256),
    Load("25M", _decoder(512, 6, 8, 4, 1792, 8192), "float32", (16, 64), 64, 128, 256),
    Load("100M", _decoder(768, 12, 12, 4, 2048, 32000), "float32", (16, 64), 64, 64, 256),
)
ON_GPU = tuple(
    Load(name, preset(name), "bfloat16", (64, 128, 256), 512, 512, 1024)
    for name in ("qwen2.5-1.5b", "qwen2.5-7b")
)
QUICK = (Load("quick", _decoder(32, 2, 4, 2, 64, 64), "float32", (4,), 8, 12, 16),)


def tail_lengths(requests: int, limit: int, seed: int) -> np.ndarray:
    """Return lengths that fall off exponentially: the quantiles of the distribution, cut to the limit, shuffled."""
    quantiles = (np.arange(requests) + 0.5) / requests
    lengths = np.minimum(np.ceil(-MEAN_SHARE * limit * np.log1p(-quantiles)), limit).astype(np.int32)
    lengths[-1] = limit
    return np.random.default_rng(seed).permutation(lengths)


def sampling_of(load: Load) -> Sampling:
    """Return how both sides draw: from the whole distribution, up to the limit."""
    return Sampling(
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        min_response_tokens=0,
        max_response_tokens=load.response_tokens,
        end_ids=(),
        pad_id=0,
    )


class Ours:
    """jaxflow's generator with its weights."""

    def __init__(self, load: Load, folder: pathlib.Path):
        """Draw weights, write them to `folder` for the other side, and bring them to the generation layout."""
        self._load, mesh = load, make_mesh(1, 1, 1, 1, jax.devices()[:1])
        model = describe(load.config, LanguageModel)
        training, generation = training_layout(mesh, load.config), generation_layout(mesh, load.config)
        params = new_weights(model, training, 0, 0)
        positions = load.prompt_tokens + load.response_tokens
        config = write_config(load.config, "tokens", load.dtype, positions)
        write_checkpoint(folder, load.config, "tokens", entries_of(params, load.dtype), load.dtype, config)
        shardings = generation.weights(model.names)
        self._params, _ = transition(params, shardings, load.dtype, release=True)
        self._generators = {
            batch: Generator(model, generation, load.dtype, sequences_per_device=batch)
            for batch in load.batches
        }
        self._sampling = sampling_of(load)

    def run(self, batch: int, tokens: np.ndarray, lengths: np.ndarray) -> int:
        """Generate a response of each length and return how many tokens that were."""
        rows = np.arange(len(tokens), dtype=np.int32)
        row = PromptRow("", (), "", "random", {})
        widths = np.full(len(tokens), tokens.shape[1], np.int32)
        prompts = Prompts(tokens, widths, rows, np.full_like(rows, -1), rows, 0, (row,) * len(rows))
        rollout = self._generators[batch](
            self._params, prompts, self._sampling, 0, 0, 0, policy_updates=0, limits=lengths
        )
        return int(rollout.response_mask.sum())


class Theirs:
    """transformers' generate, eager or compiled, with the weights that jaxflow wrote."""

    def __init__(self, load: Load, folder: pathlib.Path, device: str):
        self._load = load
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, load.dtype), local_files_only=True
        )
        self._model = self._model.to("cuda" if device == "gpu" else "cpu").eval()
        generation = self._model.generation_config
        generation.eos_token_id, generation.pad_token_id = None, 0
        self._plain = self._model.forward
        self._compiled = torch.compile(self._plain)

    def run(self, batch: int, tokens: np.ndarray, lengths: np.ndarray, compiled: bool) -> int:
        """Generate batch after batch, each to its longest length; return the tokens that were asked for."""
        model = self._model
        model.forward = self._compiled if compiled else self._plain
        for start in range(0, len(tokens), batch):
            given = torch.tensor(tokens[start : start + batch].astype(np.int64), device=model.device)
            longest = int(lengths[start : start + batch].max())
            cache: dict[str, Any] = {}
            if compiled:
                positions = self._load.prompt_tokens + self._load.response_tokens
                cache = {
                    "past_key_values": transformers.StaticCache(config=model.config, max_cache_len=positions)
                }
            answer = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=longest,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                **cache,
            )
            assert answer.shape[1] == tokens.shape[1] + longest
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return int(lengths.sum())


def limit(
    load: Load, batch: int, lengths: np.ndarray, flops_rate: float, read_rate: float
) -> tuple[float, str]:
    """Return the seconds that cannot be undercut, and what takes them.

    Arithmetic: 2·(weights that multiply) per token, the vocabulary's for drawn tokens alone, and 4·N·H per layer and
    position attended to. Bytes: each prefill and each step reads the weights once, and a token its keys and values.
    """
    config, prompt = load.config, load.prompt_tokens
    table = config.padded_vocabulary_size * config.width
    body = config.parameter_count - table * (1 if config.tied_embeddings else 2)
    drawn = float(lengths.sum())
    # Token n of a response attends to the prompt and the n - 1 tokens before it, and itself.
    attended = float((lengths * prompt + lengths * (lengths + 1) / 2).sum())
    attended_in_prompts = len(lengths) * prompt * prompt / 2
    heads = 4.0 * config.layers * config.heads * config.head_width
    flops = 2.0 * body * (len(lengths) * prompt + drawn) + 2.0 * table * drawn
    flops += heads * (attended + attended_in_prompts)
    itemsize = 4 if load.dtype == "float32" else 2
    steps = math.ceil(drawn / batch) + math.ceil(len(lengths) / batch)
    cached = 2.0 * config.layers * config.kv_heads * config.head_width * attended
    read = itemsize * (steps * (body + table) + cached)
    arithmetic, reading = flops / flops_rate, read / read_rate
    return max(arithmetic, reading), "arithmetic" if arithmetic >= reading else "bytes"


def _fastest(calls: dict[str, Callable[[], int]], repeats: int) -> tuple[dict[str, float], dict[str, str]]:
    """Return tokens per second of each call, the calls taking turns, and why some have none."""
    rates: dict[str, float] = {}
    failures: dict[str, str] = {}
    for turn in range(repeats):
        for name, call in calls.items():
            if name in failures:
                continue
            started = time.perf_counter()
            try:
                tokens = call()
            except Exception as error:
                if name != "compiled":
                    raise
                failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                continue
            rate = tokens / (time.perf_counter() - started)
            print(f"  turn {turn + 1} {name:9} {rate:9.1f} tok/s", flush=True)
            rates[name] = max(rates.get(name, 0.0), rate)
    return rates, failures


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be measured of each model."""

    device: str  # cpu | gpu
    batches: Sequence[int] | None  # None: the model's own
    cases: Sequence[str]
    baselines: Sequence[str]  # eager, compiled
    repeats: int  # turns with fixed lengths; the long tail has one
    hardware: str


def measure(load: Load, asked: Asked) -> list[Row]:
    """Measure one model."""
    rows: list[Row] = []
    machine = bench(jax.devices()[:1], repeats=3)
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory) / "weights"
        ours, theirs = Ours(load, folder), Theirs(load, folder, asked.device)
        for batch in (one for one in load.batches if asked.batches is None or one in asked.batches):
            for case in asked.cases:
                requests = load.tail_requests if case == "long_tail" else batch
                generator = np.random.default_rng(0)
                shape = (requests, load.prompt_tokens)
                tokens = generator.integers(0, load.config.vocabulary_size, shape).astype(np.int32)
                lengths = np.full(requests, load.response_tokens, np.int32)
                if case == "long_tail":
                    lengths = tail_lengths(requests, load.response_tokens, seed=1)
                print(f"{load.model}, batch {batch}, {case}: {requests} requests", flush=True)
                given = (batch, tokens, lengths)
                calls = {"jaxflow": functools.partial(ours.run, *given)}
                for name in asked.baselines:
                    calls[name] = functools.partial(theirs.run, *given, compiled=name == "compiled")
                # jaxflow compiles for all that the requests come to; transformers for one batch and its first tokens.
                ours.run(*given)
                few = (batch, tokens[:batch], np.full(batch, 2, np.int32))
                for name in asked.baselines:
                    _fastest({name: functools.partial(theirs.run, *few, compiled=name == "compiled")}, 1)
                rates, failures = _fastest(calls, asked.repeats if case == "fixed" else 1)
                # Beside what it is to be compared with: other programs on the machine slow both.
                flops, reading = max(matmul_ladder(machine).values()), read_bandwidth(machine)
                seconds, why = limit(load, batch, lengths, flops, reading)
                baseline = max((name for name in rates if name != "jaxflow"), key=rates.__getitem__)
                rows.append(
                    Row(
                        model=load.model,
                        batch=batch,
                        case=case,
                        tokens_per_second=rates["jaxflow"],
                        baseline=f"transformers {baseline}",
                        baseline_tokens_per_second=rates[baseline],
                        ratio=rates["jaxflow"] / rates[baseline],
                        eager_tokens_per_second=rates.get("eager"),
                        compiled_tokens_per_second=rates.get("compiled"),
                        compiled_failure=failures.get("compiled", ""),
                        limit_tokens_per_second=int(lengths.sum()) / seconds,
                        limit_share=rates["jaxflow"] * seconds / int(lengths.sum()),
                        limited_by=why,
                        share_of_fixed=None,
                        parameters=load.config.parameter_count,
                        requests=requests,
                        tokens=int(lengths.sum()),
                        prompt_tokens=load.prompt_tokens,
                        response_tokens=load.response_tokens,
                        dtype=load.dtype,
                        matmul_flops_per_second=flops,
                        read_bytes_per_second=reading,
                        hardware=asked.hardware,
                        date=datetime.date.today().isoformat(),
                    )
                )
    return rows


_HEADING = (
    "model         batch case       jaxflow    eager compiled  ratio     limit  share by          of fixed\n"
    "------------ ------ --------- -------- -------- -------- ------ --------- ------ ----------- --------"
)


def line(row: Row) -> str:
    """Return a row of the printed table; rates in tokens per second."""
    eager, compiled = (
        "-" if rate is None else f"{rate:.0f}"
        for rate in (row.eager_tokens_per_second, row.compiled_tokens_per_second)
    )
    of_fixed = "-" if row.share_of_fixed is None else f"{row.share_of_fixed:.0%}"
    return (
        f"{row.model:12} {row.batch:6d} {row.case:9} {row.tokens_per_second:8.0f} "
        f"{eager:>8} {compiled:>8} {row.ratio:5.2f}x {row.limit_tokens_per_second:9.0f} "
        f"{row.limit_share:6.1%} {row.limited_by:11} {of_fixed:>8}"
    )


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return all rows, those measured again replaced; long tails beside the fixed lengths of their batch."""

    def place(row: Row) -> tuple[str, int, str]:
        return row.model, row.batch, row.case

    again = set(map(place, new))
    rows = [row for row in old if place(row) not in again] + list(new)
    fixed = {(row.model, row.batch): row.tokens_per_second for row in rows if row.case == "fixed"}
    return [
        dataclasses.replace(row, share_of_fixed=row.tokens_per_second / fixed[row.model, row.batch])
        if row.case == "long_tail" and (row.model, row.batch) in fixed
        else row
        for row in rows
    ]


def _set_up(device: str, threads: int) -> str:
    """Give both libraries the same device and threads; return the machine in words."""
    if device == "gpu":
        # Both libraries share the card: neither may take all of it.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        jax.config.update("jax_platforms", "cuda,cpu")
        name = torch.cuda.get_device_name()
    else:
        # XLA makes as many threads as the process may use cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        torch.set_num_threads(threads)
        jax.config.update("jax_platforms", "cpu")
        found = [one for one in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in one]
        name = f"{threads} cores of {found[0].partition(':')[2].strip() if found else 'a CPU'}"
    return f"{name}, jax {jax.__version__}, torch {torch.__version__}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the rows to this file, or into it")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--models", nargs="+", help="some of the device's models")
    parser.add_argument("--batches", nargs="+", type=int, help="some of the model's batches")
    parser.add_argument("--cases", nargs="+", choices=("fixed", "long_tail"), default=["fixed", "long_tail"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="on a CPU")
    parser.add_argument("--quick", action="store_true", help="a model of a few thousand parameters alone")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns with fixed lengths")
    parser.add_argument(
        "--baselines", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"]
    )
    flags = parser.parse_args(arguments)
    loads = QUICK if flags.quick else ON_GPU if flags.device == "gpu" else ON_CPU
    names = [load.model for load in loads]
    wanted = names if flags.models is None else flags.models
    if not set(wanted) <= set(names):
        parser.error(f"--models: these are {', '.join(names)}")
    hardware = _set_up(flags.device, flags.threads)
    asked = Asked(flags.device, flags.batches, flags.cases, flags.baselines, flags.repeats, hardware)
    measured = [row for load in loads if load.model in wanted for row in measure(load, asked)]
    old: list[Row] = []
    if flags.json is not None and flags.json.is_file():
        old = [Row(**row) for row in json.loads(flags.json.read_text(encoding="utf-8"))]
    rows = merged(old, measured)
    print(f"\n{hardware}\ntokens per second\n\n{_HEADING}")
    print("\n".join(map(line, rows)))
    if flags.json is not None:
        table = [dataclasses.asdict(row) for row in rows]
        flags.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
