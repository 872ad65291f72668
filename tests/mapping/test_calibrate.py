"""What is measured is a profile that plans can use, of the devices that were asked for."""

import jax
import pytest

from jaxflow.mapping.calibrate import bench, matmul_ladder, measure
from jaxflow.mapping.devices import device_profile, write_profile


@pytest.mark.slow
def test_this_machine_measured_is_a_profile(tmp_path):
    on = bench(jax.devices()[:2], repeats=2)
    profile = measure(on, "here")
    write_profile(profile, tmp_path / "here.json")
    assert device_profile(str(tmp_path / "here.json")) == profile
    ladder = matmul_ladder(on)
    assert list(ladder) == sorted(ladder)
    # Two runs on a shared machine differ, but not by an order of magnitude.
    assert 0.1 < profile.matmul_flops / max(ladder.values()) < 10
    assert profile.memory_bytes < 1e13
