"""Meshes have the sizes asked for, in an order that makes the switch cheap."""

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.mesh import AXES, make_mesh


def test_sizes_follow_the_axes():
    mesh = tiny.mesh_of((2, 1, 4, 2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2, "micro": 2}
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_devices_that_trade_weights_at_the_switch_are_neighbours():
    order = [device.id for device in jax.devices()]
    groups = tiny.mesh_of((2, 1, 4, 2)).devices.reshape(-1, 2)
    assert [[device.id for device in group] for group in groups] == np.reshape(order, (4, 2)).tolist()


def test_a_wrong_number_of_devices_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"needs 4 devices, got 8"):
        make_mesh(data=2, fsdp=1, tensor=2, generation_tensor=1, devices=jax.devices())


def test_a_generation_size_that_does_not_divide_the_training_size_is_refused():
    with pytest.raises(ValueError, match=r"generation tensor size 3 does not divide the training size 4"):
        make_mesh(data=2, fsdp=1, tensor=4, generation_tensor=3, devices=jax.devices())
