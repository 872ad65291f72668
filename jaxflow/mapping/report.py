"""A plan as lines for people, and as JSON. Knows plans; reckons nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jaxflow.mapping.cost import Seconds
from jaxflow.mapping.load import STAGES
from jaxflow.mapping.mends import Mend
from jaxflow.mapping.plan import PhaseBytes, Plan, PlannedPool
from jaxflow.mapping.search import Mapping
from jaxflow.placement import readable_bytes

_BOUNDS = {
    "compute": "FLOPs",
    "memory": "memory bandwidth",
    "links": "links",
    "latency": "latency",
    "idle": "pipeline bubbles",
    "host": "the host",
}


def describe_plan(plan: Plan, others: Sequence[Mapping], repairs: Sequence[Mend]) -> list[str]:
    """Return the plan: pools, bytes, seconds, runners-up, and what does not fit with what would make it."""
    lines = [*_device_lines(plan)]
    if plan.idle_devices > 0:
        lines.append(
            f"idle        {plan.idle_devices} devices: nothing divides over them that gains from them"
        )
    for pool in plan.pools:
        lines += _pool_lines(pool)
        lines += _byte_lines(pool)
    lines += _second_lines(plan)
    if others:
        lines.append("runners-up")
        lines += [f"  {describe_mapping(mapping)}" for mapping in others]
    for name, size in plan.excess.items():
        worst = next(pool.worst for pool in plan.pools if pool.name == name)
        lines.append(
            f"DOES NOT FIT: pool {name} lacks {readable_bytes(size)} on each device while {worst.role} is in"
            f" {worst.phase}"
        )
    if plan.excess:
        lines.append("what would make it fit, each by itself:" if repairs else "nothing tried makes it fit")
        lines += [f"  • {mend.change}" for mend in repairs]
    return lines


def _device_lines(plan: Plan) -> Iterator[str]:
    for kind in dict.fromkeys(pool.device for pool in plan.pools):
        pools = [pool for pool in plan.pools if pool.device == kind]
        devices = sum(pool.hosts * pool.devices_per_host for pool in pools)
        size, room = readable_bytes(pools[0].device_bytes), readable_bytes(pools[0].room_bytes)
        yield f"devices     {devices} × {kind}, {size} each, {room} to be planned with"


def _pool_lines(pool: PlannedPool) -> Iterator[str]:
    mesh = pool.mesh
    hosts = f"{pool.hosts} host{'s' if pool.hosts > 1 else ''} × {pool.devices_per_host} {pool.device}"
    yield f"pool {pool.name}: {hosts} → {', '.join(pool.roles)}"
    pipe = f" × pipe {mesh.pipe}" if mesh.pipe > 1 else ""
    expert = f" × expert {mesh.expert}" if mesh.expert > 1 else ""
    yield f"  training    data {mesh.data} × fsdp {mesh.fsdp}{expert}{pipe} × tensor {mesh.tensor}"
    if pool.rows > 0:
        replicas = pool.hosts * pool.devices_per_host // (mesh.generation_tensor * mesh.generation_pipe)
        stages = f" × pipe {mesh.generation_pipe}" if mesh.generation_pipe > 1 else ""
        yield (
            f"  generation  {replicas} replicas{stages} × tensor {mesh.generation_tensor}, {pool.rows} sequences of"
            " each at a time"
        )
    if pool.generation_scoring:
        yield f"  scoring     in the generation layout: {', '.join(pool.generation_scoring)}"
    for model in pool.models:
        rest = model.rest
        kept = [f"{readable_bytes(int(rest.weights))} weights"]
        kept += [f"{readable_bytes(int(rest.optimizer))} optimizer"] if rest.optimizer > 0 else []
        kept += [f"{readable_bytes(int(rest.references))} reference"] if rest.references > 0 else []
        waits = "; waits in host memory" if model.role in pool.offload else ""
        yield f"  {model.role:<11} {model.parameters:,} parameters → at rest per device {', '.join(kept)}{waits}"


def _byte_lines(pool: PlannedPool) -> Iterator[str]:
    if not pool.phases:
        return
    rows = [
        (
            "bytes per device",
            "at rest",
            "rollout",
            "gradients",
            "new state",
            "activations",
            "cache",
            "total",
            "of room",
        )
    ]
    rows += [_byte_row(phase, pool.room_bytes) for phase in pool.phases]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        first = row[0].ljust(widths[0])
        yield "  " + "  ".join([first, *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])


def _byte_row(phase: PhaseBytes, room: float) -> tuple[str, ...]:
    work = phase.work
    sizes = (
        phase.at_rest,
        phase.held + work.rollout_weights,
        work.gradients,
        work.optimizer,
        work.activations,
        work.cache,
        phase.total,
    )
    cells = [readable_bytes(int(size)) if size > 0 else "-" for size in sizes]
    return (f"{phase.role} {phase.phase}", *cells, f"{phase.total / room:.0%}")


def _second_lines(plan: Plan) -> Iterator[str]:
    yield (
        f"step        {plan.step_seconds:.1f} s predicted, {plan.tokens_per_second:,.0f} tokens/s"
        f" ({plan.tokens_per_step:,} tokens, every sequence the longest)"
    )
    for part, name in enumerate(STAGES):
        for pool in plan.pools:
            for call in pool.calls:
                if call.step_part == part:
                    yield (
                        f"  {name:<12} {pool.name:<24} {call.stage:<16} {call.seconds.total:>9.2f} s  bound by"
                        f" {_described(call.seconds)}"
                    )


def _described(seconds: Seconds) -> str:
    share = vars(seconds)[seconds.bound] / seconds.total if seconds.total > 0 else 0.0
    return f"{_BOUNDS[seconds.bound]} ({share:.0%})"


def describe_mapping(mapping: Mapping) -> str:
    """Return a mapping in one line."""
    pools = []
    for placed in mapping.sets:
        layout = placed.option.layouts[0]
        experts = f" x{layout.expert}" if layout.expert > 1 else ""
        sizes = f"d{layout.data} f{layout.fsdp}{experts} p{layout.pipe} t{layout.tensor}"
        generating = [one.generation_tensor for one in placed.option.layouts if placed.option.rows > 0][:1]
        sizes += "".join(f" t_g{size}" for size in generating)
        sizes += ", offload" if placed.option.offload else ""
        apart = placed.option.generation_scoring
        sizes += f", {' and '.join(apart)} scored as generated" if apart else ""
        idle = placed.allocated - placed.option.devices
        spare = f", {idle} idle" if idle > 0 else ""
        pools.append(f"{{{', '.join(placed.roles)}}} {placed.option.devices} ({sizes}{spare})")
    return f"{mapping.seconds:8.1f} s  {'  '.join(pools)}"


def plan_json(plan: Plan, others: Sequence[Mapping], repairs: Sequence[Mend]) -> dict[str, object]:
    """Return everything that `describe_plan` says, and more digits, as plain values."""
    return {
        **dataclasses.asdict(plan),
        "step_seconds": plan.step_seconds,
        "tokens_per_second": plan.tokens_per_second,
        "excess_bytes": plan.excess,
        "fits": not plan.excess,
        "runners_up": [
            {
                "seconds": mapping.seconds,
                "stages": dict(zip(STAGES, mapping.stages, strict=True)),
                "pools": [
                    {
                        "roles": placed.roles,
                        "group": placed.option.group,
                        "devices": placed.option.devices,
                        "layouts": [dataclasses.asdict(layout) for layout in placed.option.layouts],
                    }
                    for placed in mapping.sets
                ],
            }
            for mapping in others
        ],
        "would_fit": [mend.change for mend in repairs],
    }
