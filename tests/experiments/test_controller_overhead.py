"""The overhead experiment's idle roles are called as PPO's are; what it counts ignores how wide rows are."""

import dataclasses

import numpy as np
import pytest

from experiments import controller_overhead
from experiments.controller_overhead import Case, Idle
from jaxflow.config import AlgorithmConfig
from jaxflow.dataflow import load_dataflow
from jaxflow.types import Prompts
from jaxflow.workers.cast import role_class
from jaxflow.workers.protocol import exposed_methods

CASE = Case("test", processes=2, rows=16, response_tokens=8, dataflow="IDLE", steps=3)
PPO = load_dataflow("ppo").cast


def test_idle_roles_are_called_by_the_protocols_of_the_real_ones(tmp_path):
    real = dataclasses.replace(controller_overhead.config_of(CASE, tmp_path), algorithm=AlgorithmConfig())
    compared = set()
    for role in PPO:
        for name, method in exposed_methods(role_class(real, role)).items():
            if name in exposed_methods(Idle):
                idle = exposed_methods(Idle)[name]
                assert (idle.protocol, idle.replicated, idle.by_parts) == (
                    method.protocol,
                    method.replicated,
                    method.by_parts,
                ), (role, name)
                compared.add(name)
    assert compared == set(exposed_methods(Idle))


def test_an_idle_rollout_has_prompt_and_full_response_of_every_row(tmp_path):
    idle = Idle(controller_overhead.config_of(CASE, tmp_path), None, None)
    ids = np.arange(3, dtype=np.int32)
    prompts = Prompts(
        np.ones((3, 5), np.int32), np.full(3, 5, np.int32), ids, np.full(3, -1, np.int32), ids, 0, ()
    )
    rollout = idle.generate(prompts)
    assert rollout.tokens.shape == (3, 5 + 8)
    np.testing.assert_array_equal(rollout.tokens[:, :5], prompts.tokens)
    np.testing.assert_array_equal(rollout.response_mask.sum(axis=1), [8, 8, 8])
    assert idle.score(rollout, prompts).scores.shape == (3,)


def test_the_exponent_is_that_of_a_power_law():
    sizes = [1, 2, 4, 8, 16]
    assert controller_overhead.exponent(sizes, [0.3 * size**1.7 for size in sizes]) == pytest.approx(1.7)


@pytest.mark.slow
def test_bytes_through_the_controller_do_not_grow_with_the_response():
    short, long = (
        controller_overhead.measure(dataclasses.replace(CASE, response_tokens=tokens)) for tokens in (8, 128)
    )
    assert short.controller_bytes == long.controller_bytes > 0
    for row in (short, long):
        assert 0 < row.controller_seconds <= min(row.wall, row.driver_seconds)
        assert 0 < row.share < 1
