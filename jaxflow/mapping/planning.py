"""The plan that `--plan` shows: of the pools of a config, or of the search's answer, or of what comes nearest.

Knows configs. Prints nothing, starts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxflow.config import Config
from jaxflow.mapping.asked import described
from jaxflow.mapping.auto import mappings_of, pools_of, problem_of, resolve
from jaxflow.mapping.colocated import SetOption
from jaxflow.mapping.layouts import generation_layouts, training_layouts
from jaxflow.mapping.mends import Mend, mends
from jaxflow.mapping.plan import Plan, make_plan
from jaxflow.mapping.search import Mapping, PlacedSet, Problem
from jaxflow.types import UserError


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan, the config whose plan it is, and what else could be."""

    config: Config  # its pools are the plan's
    plan: Plan
    runners_up: tuple[Mapping, ...]
    mends: tuple[Mend, ...]  # where it does not fit


def plan_config(config: Config, vocabulary_size: int, roles: Sequence[str]) -> Planned:
    """Plan a config with these roles. With `cluster.mapping = "auto"` its pools are searched for first.

    Raises UserError where no layout of the roles on the devices can be, however much memory they had.
    """
    if config.cluster.mapping == "pools":
        plan = make_plan(config, vocabulary_size, roles)
        # The search puts generation where the policy is; beside a generator of its own it has nothing to say.
        others = () if "generator" in roles else mappings_of(config, vocabulary_size, roles)[:3]
        repairs = mends(config, vocabulary_size, roles) if plan.excess else []
        return Planned(config, plan, others, tuple(repairs))
    found = mappings_of(config, vocabulary_size, roles)
    if found:
        resolved = resolve(config, roles, found[0])
        return Planned(resolved, make_plan(resolved, vocabulary_size, roles), found[1:], ())
    nearest = _nearest(config, vocabulary_size, roles)
    plan = make_plan(nearest, vocabulary_size, roles)
    return Planned(nearest, plan, (), tuple(mends(config, vocabulary_size, roles)))


def _nearest(config: Config, vocabulary_size: int, roles: Sequence[str]) -> Config:
    """Return the config with all roles on one pool of all devices of a kind, in the layout that lacks the fewest
    bytes."""
    problem = problem_of(config, vocabulary_size, roles)
    smallest = dataclasses.replace(
        config, rollout=dataclasses.replace(config.rollout, sequences_per_device=1)
    )
    candidates = [
        dataclasses.replace(
            smallest,
            cluster=dataclasses.replace(smallest.cluster, pools=pools_of(mapping, roles, config.cluster)),
        )
        for group in range(len(problem.cluster))
        for mapping in _whole_group(problem, group)
    ]
    if not candidates:
        raise UserError(
            f"no layout of {', '.join(roles)} on {described(problem.cluster)} divides the models' heads, widths and"
            " layers and the step's sequences; change the number of devices or the sequences of a step and of a"
            " mini-batch"
        )
    return min(
        candidates,
        key=lambda one: max(make_plan(one, vocabulary_size, roles).excess.values(), default=0.0),
    )


def _whole_group(problem: Problem, index: int) -> list[Mapping]:
    """Return every layout of all roles on one pool of the most devices of a kind that have any, fitting or not."""
    setting = problem.setting(index)
    group = problem.cluster[index]
    hosts = range(group.hosts, 0, -1)
    sizes = [count * group.devices_per_host for count in hosts] + list(
        range(group.devices_per_host - 1, 0, -1)
    )
    for devices in sizes:
        tables = [training_layouts(load, devices, setting, problem.freedom) for load in problem.loads]
        shared = [layout for layout in tables[0] if all(layout in table for table in tables[1:])]
        if not shared:
            continue
        found = []
        for layout in shared:
            for load in problem.loads:
                for generator in generation_layouts(load, layout, setting) if load.generations > 0 else ():
                    option = SetOption(
                        stages=(0.0, 0.0, 0.0),
                        first=0.0,
                        tail=0.0,
                        devices=devices,
                        layouts=(generator,) * len(problem.loads),
                        rows=1,
                        offload=False,
                        generation_scoring=(),
                        group=index,
                    )
                    placed = PlacedSet(tuple(one.role for one in problem.loads), option, devices)
                    found.append(Mapping((placed,), option.stages))
        if found:
            return found
    return []
