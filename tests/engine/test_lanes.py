"""Lanes are of a CPU that is one device, and each has rows enough to read the weights for."""

import dataclasses

import jax
import pytest
import tiny

from jaxflow.engine import lanes
from jaxflow.engine.sharding import generation_layout

WIDE = dataclasses.replace(tiny.CONFIG, width=512, mlp_width=1792)


@pytest.mark.parametrize(
    ("config", "rows", "expected"),
    [(WIDE, 16, 1), (WIDE, 64, 2), (WIDE, 1024, 4), (tiny.CONFIG, 7, 1), (tiny.CONFIG, 16, 2)],
)
def test_a_lane_has_the_fewer_rows_the_smaller_its_weights_and_a_core(monkeypatch, config, rows, expected):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(lanes.os, "cpu_count", lambda: 4)
    assert lanes.lanes_of(config, generation_layout(tiny.mesh_of((1, 1, 1, 1))), rows) == expected


def test_devices_that_share_a_cpu_have_one_lane_each():
    for sizes in ((1, 1, 1, 1), (2, 1, 4, 1)):
        assert lanes.lanes_of(tiny.CONFIG, generation_layout(tiny.mesh_of(sizes)), 1024) == 1
