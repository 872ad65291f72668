"""What a pool claims of each host: its devices, and their kind where hosts differ."""

import pytest
from good_config import split_config

from jaxflow import batch_algebra
from jaxflow.workers.launch import resource_pools

GPUS = {"cluster__platform": "gpu", "cluster__devices__kind": "h100"}


@pytest.mark.parametrize(
    ("changes", "main", "judges"),
    [
        ({}, {"CPU": 1.0}, {"CPU": 1.0}),
        (GPUS, {"CPU": 1.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 3.0}),
        (
            {**GPUS, "cluster__pools__judges__device": "l40s"},
            {"CPU": 1.0, "GPU": 4.0, "accelerator_type:H100": 0.001},
            {"CPU": 1.0, "GPU": 3.0, "accelerator_type:L40S": 0.001},
        ),
    ],
)
def test_pools_of_several_kinds_claim_theirs_and_others_none(changes, main, judges):
    config = split_config(**changes)
    pools = {pool.name: pool.claim for pool in resource_pools(config, batch_algebra.derive(config, 100))}
    assert pools == {"main": main, "judges": judges}
