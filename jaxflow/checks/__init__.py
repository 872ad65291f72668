"""What in a config cannot be: every contradiction found at once, before a device is touched.

Knows the whole config and whether files exist. Opens no file but that of an algorithm of the user's and the headers
of weights, builds no mesh, loads no tokenizer.
"""

from __future__ import annotations

from jaxflow.checks.cluster import address_problems
from jaxflow.checks.learning import cast_problems, token_problems
from jaxflow.checks.material import (
    file_problems,
    reward_problems,
    scoring_problems,
    task_problems,
    validation_problems,
)
from jaxflow.checks.models import adapter_problems, model_problems, models
from jaxflow.checks.placement import (
    device_problems,
    mesh_problems,
    offload_problems,
    row_problems,
    scoring_layout_problems,
    sharding_problems,
)
from jaxflow.checks.rollout import rollout_problems
from jaxflow.checks.rule import rule_problems, rule_warnings
from jaxflow.checks.stages import stage_problems
from jaxflow.checks.values import countable, out_of_range, wrong_names
from jaxflow.checks.weights import weight_problems
from jaxflow.config import Config, refuse

__all__ = ["check", "check_values", "warnings"]


def check_values(config: Config) -> None:
    """Refuse single keys that cannot be, before anything is reckoned from them; UserError with all of them."""
    refuse("the config", [*wrong_names(config), *out_of_range(config)])


def check(config: Config, vocabulary_size: int | None, devices_available: int | None) -> None:
    """Refuse a config that contradicts itself, its files or the machine.

    `vocabulary_size` is the tokenizer's and `devices_available` the machine's; None where not known (yet).
    Raises `UserError` with every problem found: what, where, how to mend it.
    """
    problems = [
        *wrong_names(config),
        *out_of_range(config),
        *file_problems(config),
        *task_problems(config),
        *validation_problems(config),
        *reward_problems(config),
        *scoring_problems(config),
        *rollout_problems(config, vocabulary_size),
        *address_problems(config),
        *cast_problems(config),
        *mesh_problems(config, devices_available),
        *offload_problems(config),
        *device_problems(config),
    ]
    # Sizes below one are reported above; nothing can be divided by them.
    if countable(config):
        for path, model in models(config):
            problems += model_problems(path, model, vocabulary_size)
        problems += adapter_problems(config)
        problems += sharding_problems(config, vocabulary_size)
        problems += row_problems(config)
        problems += scoring_layout_problems(config)
        problems += token_problems(config)
        problems += rule_problems(config)
        problems += stage_problems(config)
        if vocabulary_size is not None:
            problems += weight_problems(config, vocabulary_size)
    refuse("the config", problems)


def warnings(config: Config) -> list[str]:
    """Say what a config that `check` accepts asks for and hardly means."""
    return list(rule_warnings(config))
