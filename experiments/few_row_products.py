"""GFLOP per CPU second of the products of a decode step on a CPU, by how they are laid out.

    python experiments/few_row_products.py

Per CPU second, so that other programs on the machine disturb little: layouts are compared, not machines. What the
engine does is the column `turned` (models/layers.py) and the line `by query` (engine/attention.py); when a new XLA
makes another one the fastest, they should follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxflow.models.layers import turned_product

ROWS = (16, 64, 1024)
WEIGHTS = ((128, 512), (512, 1792), (768, 2048), (768, 32000))  # D, F
ATTENTION = ((16, 4, 2, 64, 192), (64, 4, 2, 64, 192))  # B, K, queries of a group, H, S
REPEATS = 8  # the fastest counts


def _random(*shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32))


def _fastest(programs: Mapping[str, Callable[..., Array]], *arguments: Array) -> dict[str, float]:
    """Return the CPU seconds of each program; they take turns."""
    compiled = {name: jax.jit(program) for name, program in programs.items()}
    seconds = dict.fromkeys(programs, float("inf"))
    for turn in range(1 + REPEATS):
        for name, program in compiled.items():
            started = time.process_time()
            jax.block_until_ready(program(*arguments))
            if turn > 0:
                seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds


def _whole(queries: Float[Array, "B K G H"], keys: Float[Array, "B K S H"]) -> Float[Array, "B K G S"]:
    return jnp.einsum("bkgh,bksh->bkgs", queries, keys)


def _by_query(queries: Float[Array, "B K G H"], keys: Float[Array, "B K S H"]) -> Float[Array, "B K G S"]:
    one = [jnp.einsum("bksh,bkh->bks", keys, queries[:, :, g]) for g in range(queries.shape[2])]
    return jnp.stack(one, axis=2)


def main() -> None:
    """Measure and print both tables."""
    jax.config.update("jax_platforms", "cpu")
    products = {
        "x W": lambda x, w, turned: x @ w,
        "x turned": lambda x, w, turned: jax.lax.dot_general(x, turned, (((1,), (1,)), ((), ()))),
        "turned": lambda x, w, turned: turned_product(x, turned),
    }
    print(f"{'rows':>5} {'D':>5} {'F':>6} " + " ".join(f"{name:>9}" for name in products))
    for d, f in WEIGHTS:
        w = _random(d, f)
        for rows in ROWS:
            seconds = _fastest(
                products, _random(rows, d), w, jnp.asarray(np.ascontiguousarray(np.asarray(w).T))
            )
            rates = " ".join(f"{2 * rows * d * f / each / 1e9:9.0f}" for each in seconds.values())
            print(f"{rows:5d} {d:5d} {f:6d} {rates}", flush=True)
    print("\nscores of one new token, microseconds of CPU time")
    for b, k, g, h, s in ATTENTION:
        seconds = _fastest({"whole": _whole, "by query": _by_query}, _random(b, k, g, h), _random(b, k, s, h))
        told = ", ".join(f"{name} {1e6 * each:.0f}" for name, each in seconds.items())
        print(f"{b} rows, {k} key/value heads with {g} queries each, {s} positions of width {h}: {told}")


if __name__ == "__main__":
    main()
