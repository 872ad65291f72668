"""Tokens per second of generation, beside Hugging Face transformers' `generate` in one process on the same machine.

    python experiments/generation.py [--json FILE] [--device cpu|gpu] [--models M …] [--batches B …] [--cases C …]
                                     [--baselines B …] [--threads N] [--quick]

Both sides have the same random weights (exported by jaxflow in Hugging Face's form), the same prompts and the same
lengths, and sample at temperature 1. Nothing ends a response but its length:
  fixed      one batch, every response of the same length: the limit
  long_tail  many requests whose lengths fall off exponentially, the longest at the limit; how they were chosen is
             said in generation_sides.py.
             jaxflow gets all at once and as many slots as a batch has rows; transformers runs batch after batch,
             each until its longest response is there. Only the tokens that were asked for are counted.
transformers runs eagerly with its own growing cache, and compiled (torch.compile) with a static one; the better of
the two is the baseline. The sides take turns, each after a run that warms it up; the fastest of each counts.

The limit is what the arithmetic takes at this machine's measured matmul rate, or what the bytes (weights and keys
and values, read once per step) take at its measured read rate, whichever is more. Of a long tail, "of fixed" is its
share of the rate with fixed lengths at the same batch, and "limits'" that share of the two limits: prompts weigh more
beside short responses, whoever generates. `--json` writes a list of rows; rows of other models, batches and cases
that the file has already are kept and printed with the new ones, so that a table can be measured in parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch
from generation_sides import ON_CPU, ON_GPU, QUICK, Load, Ours, Theirs, limit, tail_lengths

from jaxflow.mapping.calibrate import matmul_ladder, read_bandwidth
from jaxflow.mapping.measuring import Bench, bench

REPEATS = 2


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
    limits_share_of_fixed: float | None  # what that share is of the two limits
    slot_occupancy: float  # drawn tokens over slots × steps that were made
    prefill_share: float  # padded prompt tokens over all that went through the model
    parameters: int
    requests: int
    baseline_requests: int
    tokens: int
    prompt_tokens: int
    response_tokens: int
    dtype: str
    matmul_flops_per_second: float
    read_bytes_per_second: float
    hardware: str
    date: str


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


def _requests(load: Load, case: str, batch: int, count: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Return how many run at a time, and so many prompts and their responses' lengths."""
    shape = (count, load.prompt_tokens)
    tokens = np.random.default_rng(0).integers(0, load.config.vocabulary_size, shape).astype(np.int32)
    if case == "fixed":
        return batch, tokens, np.full(count, load.response_tokens, np.int32)
    return batch, tokens, tail_lengths(count, load.response_tokens, seed=1)


def measure(load: Load, asked: Asked) -> list[Row]:
    """Measure one model."""
    machine = bench(jax.devices()[:1], repeats=3)
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory) / "weights"
        ours, theirs = Ours(load, folder), Theirs(load, folder, asked.device)
        return [
            _measure_case(load, asked, machine, ours, theirs, batch, case)
            for batch in load.batches
            if asked.batches is None or batch in asked.batches
            for case in asked.cases
        ]


def _measure_case(
    load: Load, asked: Asked, machine: Bench, ours: Ours, theirs: Theirs, batch: int, case: str
) -> Row:
    requests, baseline_requests = batch, batch
    if case == "long_tail":
        requests, baseline_requests = load.tail_requests, load.batches[batch] * batch
    given = _requests(load, case, batch, requests)
    of_theirs = _requests(load, case, batch, baseline_requests)
    lengths = given[-1]
    print(f"{load.model}, batch {batch}, {case}: {requests} requests ({baseline_requests})", flush=True)
    calls = {"jaxflow": functools.partial(ours.run, *given)}
    for name in asked.baselines:
        calls[name] = functools.partial(theirs.run, *of_theirs, compiled=name == "compiled")
    # jaxflow compiles for all that the requests come to; transformers for one batch and its first tokens.
    ours.run(*given)
    few = (batch, given[1][:batch], np.full(batch, 2, np.int32))
    for name in asked.baselines:
        _fastest({name: functools.partial(theirs.run, *few, compiled=name == "compiled")}, 1)
    rates, failures = _fastest(calls, asked.repeats if case == "fixed" else 1)
    # Beside what it is to be compared with: other programs on the machine slow both.
    flops, reading = max(matmul_ladder(machine).values()), read_bandwidth(machine)
    seconds, why = limit(load, batch, lengths, flops, reading)
    limits_share = None
    if case == "long_tail":
        fixed = _requests(load, "fixed", batch, batch)[-1]
        fixed_seconds, _ = limit(load, batch, fixed, flops, reading)
        limits_share = float(lengths.sum() / seconds / (fixed.sum() / fixed_seconds))
    effort = ours.effort
    busy = effort.response_tokens / effort.slot_steps
    prefill = effort.prefill_tokens / (effort.prefill_tokens + effort.slot_steps)
    print(
        f"  jaxflow: slots {busy:.1%} busy, prompts {prefill:.1%} of what went through the model", flush=True
    )
    baseline = max((name for name in rates if name != "jaxflow"), key=rates.__getitem__)
    return Row(
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
        limits_share_of_fixed=limits_share,
        slot_occupancy=busy,
        prefill_share=prefill,
        parameters=load.config.parameter_count,
        requests=requests,
        baseline_requests=baseline_requests,
        tokens=int(lengths.sum()),
        prompt_tokens=load.prompt_tokens,
        response_tokens=load.response_tokens,
        dtype=load.dtype,
        matmul_flops_per_second=flops,
        read_bytes_per_second=reading,
        hardware=asked.hardware,
        date=datetime.date.today().isoformat(),
    )


_HEADING = (
    "model         batch case       jaxflow    eager compiled  ratio     limit  share by          of fixed  limits'\n"
    "------------ ------ --------- -------- -------- -------- ------ --------- ------ ----------- -------- --------"
)


def line(row: Row) -> str:
    """Return a row of the printed table; rates in tokens per second."""
    eager, compiled = (
        "-" if rate is None else f"{rate:.0f}"
        for rate in (row.eager_tokens_per_second, row.compiled_tokens_per_second)
    )
    of_fixed, limits = (
        "-" if share is None else f"{share:.0%}" for share in (row.share_of_fixed, row.limits_share_of_fixed)
    )
    return (
        f"{row.model:12} {row.batch:6d} {row.case:9} {row.tokens_per_second:8.0f} "
        f"{eager:>8} {compiled:>8} {row.ratio:5.2f}x {row.limit_tokens_per_second:9.0f} "
        f"{row.limit_share:6.1%} {row.limited_by:11} {of_fixed:>8} {limits:>8}"
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
        for row in sorted(rows, key=lambda row: (row.parameters, row.batch, row.case))
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
        # Rows with other fields are of another experiment: they cannot stand in one table.
        fields = {field.name for field in dataclasses.fields(Row)}
        known = json.loads(flags.json.read_text(encoding="utf-8"))
        old = [Row(**row) for row in known if row.keys() == fields]
    rows = merged(old, measured)
    print(f"\n{hardware}\ntokens per second\n\n{_HEADING}")
    print("\n".join(map(line, rows)))
    if flags.json is not None:
        table = [dataclasses.asdict(row) for row in rows]
        flags.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
