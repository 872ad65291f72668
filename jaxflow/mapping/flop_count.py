"""FLOPs of a traced program, counted in its products: what loops repeat is counted as often as they do.

XLA's own count has the body of a loop once. Knows jaxprs alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax.extend


def count_flops(jaxpr: jax.extend.core.Jaxpr, loop_trips: int) -> float:
    """Return 2 · (results) · (length summed over) of every product, over all devices.

    A `scan` says how often its body runs; a `while` does not: `loop_trips` says it for all of them. Of the branches
    of a `cond` the dearest counts. A kernel (`pallas_call`) runs as often as its arguments say, and counts as nothing.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _product(equation)
        elif name == "cond":
            total += max(count_flops(branch.jaxpr, loop_trips) for branch in equation.params["branches"])
        elif name != "pallas_call":
            times = {"scan": equation.params.get("length", 1), "while": loop_trips}.get(name, 1)
            total += times * sum(count_flops(inner, loop_trips) for inner in _inner(equation))
    return total


def _product(equation: Any) -> float:
    (summed, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in summed)


def _inner(equation: Any) -> Iterator[jax.extend.core.Jaxpr]:
    for value in equation.params.values():
        if isinstance(value, jax.extend.core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, jax.extend.core.Jaxpr):
            yield value
