"""A config without contradictions on one pool or two, to be changed key by key."""

import pytest

from jaxflow.checks import check
from jaxflow.config import Config, from_json
from jaxflow.types import UserError

ROLES = ["actor", "critic", "reference", "reward", "estimator"]

# Eight devices: data 2 × fsdp 1 × tensor 4, generation with t_g = 2; 96 prompts × 4 samples.
GOOD = {
    "run.total_steps": 10,
    "cluster.pools.main.roles": ROLES,
    "cluster.pools.main.devices_per_host": 8,
    "cluster.pools.main.mesh.data": 2,
    "cluster.pools.main.mesh.tensor": 4,
    "cluster.pools.main.mesh.generation_tensor": 2,
    "data.prompts_per_step": 96,
    "data.max_prompt_tokens": 12,
    "rollout.samples_per_prompt": 4,
    "rollout.max_response_tokens": 20,
    "rollout.sequences_per_device": 64,
    "actor.minibatch_sequences": 128,
    "actor.update_epochs": 2,
    "actor.microbatch_tokens_per_device": 640,
    "critic.minibatch_sequences": 96,
}

# The same policy on two hosts of four, and three devices beside it.
SPLIT = {
    "cluster.pools.main.roles": ["actor", "reference"],
    "cluster.pools.main.hosts": 2,
    "cluster.pools.main.devices_per_host": 4,
    "cluster.pools.judges.roles": ["critic", "reward", "estimator"],
    "cluster.pools.judges.devices_per_host": 3,
    "cluster.pools.judges.mesh.data": 3,
}


def config(**changes: object) -> Config:
    """Build the good config with dotted keys changed (`__` for a dot)."""
    return _built({**GOOD, **_dotted(changes)})


def split_config(**changes: object) -> Config:
    """Build the good config on two pools with dotted keys changed (`__` for a dot)."""
    return _built({**GOOD, **SPLIT, **_dotted(changes)})


def problems(bad: Config, vocabulary_size: int | None = 100, devices: int | None = 16) -> list[str]:
    """Return what the checks say, a line per problem; fail where they say nothing."""
    with pytest.raises(UserError) as caught:
        check(bad, vocabulary_size, devices)
    return [line.removeprefix("  • ") for line in str(caught.value).split("\n")[1:]]


def _dotted(changes: dict[str, object]) -> dict[str, object]:
    return {key.replace("__", "."): value for key, value in changes.items()}


def _built(values: dict[str, object]) -> Config:
    tree: dict = {}
    for path, value in values.items():
        *groups, key = path.split(".")
        group = tree
        for name in groups:
            group = group.setdefault(name, {})
        group[key] = value
    return from_json(tree)
