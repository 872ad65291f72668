"""The 3D-HybridEngine as a function: weights from one layout to another, with a count of what it cost.

A transition is planned once per pair of layouts (transition_plan.py) and then run every step. Knows trees of
arrays and shardings; no model, no algorithm, no Ray. Why the layouts make it cheap: docs/hybrid_engine.md.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

from jaxflow.engine.transition_plan import TransitionCost, leaves_of, plan_transition
from jaxflow.models.transformer import Params

BUCKET_BYTES = 64 << 20  # of target weights per device, at least, that move together


@dataclasses.dataclass(frozen=True)
class TransitionReport(TransitionCost):
    """What one transition did."""

    seconds: float  # of the move itself; the first one's compilation comes on top


def transition(
    params: Params, shardings: Any, dtype: str, release: bool = False, bucket_bytes: int = BUCKET_BYTES
) -> tuple[Params, TransitionReport]:
    """Return `params` in `shardings` and `dtype`, and what that cost.

    Leaves that already are as wanted are passed on as they are. With `release` the others' source is deleted as
    its bucket is done: for when the result is to be the only copy. Without, the source stays, and the way back
    is to drop the result.
    """
    leaves, structure = jax.tree.flatten(params)
    described = leaves_of(leaves, [leaf.sharding for leaf in leaves], jax.tree.leaves(shardings))
    plan = plan_transition(described, dtype, release, bucket_bytes)
    started = time.perf_counter()
    moved = list(leaves)
    for bucket in plan.buckets:
        sources = [leaves[i] for i in bucket.indices]
        results = bucket.move(sources)
        for i, result in zip(bucket.indices, results, strict=True):
            moved[i] = result
        if release:
            jax.block_until_ready(results)
            for source in sources:
                source.delete()
    jax.block_until_ready(moved)
    report = TransitionReport(**vars(plan.cost), seconds=time.perf_counter() - started)
    return jax.tree.unflatten(structure, moved), report
