"""What a plan cannot be compiled for is refused with what can, or with what to install."""

import importlib.util

import pytest

from jaxflow.mapping.devices import DEVICES, DeviceGroup
from jaxflow.mapping.gpu_target import gpu_topology
from jaxflow.types import UserError


def test_a_kind_without_a_description_is_refused_with_those_that_have_one():
    with pytest.raises(UserError, match=r"knows h100, h200, not .*tpu-v5e"):
        gpu_topology(DeviceGroup(DEVICES["tpu-v5e"], 1, 8))


def test_gpus_are_described_without_one_where_the_plugin_is_and_asked_for_where_not():
    group = DeviceGroup(DEVICES["h100"], 2, 4)
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        with pytest.raises(UserError, match="pip install jax-cuda12-plugin"):
            gpu_topology(group)
    else:
        assert [device.platform for device in gpu_topology(group)] == ["gpu"] * 8
