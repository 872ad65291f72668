"""Meshes have the sizes asked for, in an order that makes the switch cheap."""

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.mesh import AXES, make_mesh


def ranks(mesh):
    """Positions of the mesh's devices in the order given, as an array with one dimension per axis."""
    order = {device: rank for rank, device in enumerate(jax.devices())}
    return np.vectorize(order.get)(mesh.devices)


def groups(mesh, *axes):
    """The sets of ranks that differ on these axes alone."""
    dimensions = [AXES.index(axis) for axis in axes]
    size = int(np.prod([mesh.shape[axis] for axis in axes]))
    moved = np.moveaxis(ranks(mesh), dimensions, range(-len(dimensions), 0))
    return [tuple(sorted(group)) for group in moved.reshape(-1, size).tolist()]


def test_sizes_follow_the_axes():
    mesh = tiny.mesh_of((2, 1, 4, 2))
    sizes = {"data": 2, "fsdp": 1, "expert": 1, "pipe": 1, "micro_pipe": 1, "tensor": 2, "micro": 2}
    assert dict(mesh.shape) == sizes
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_groups_of_the_papers_example_come_out():
    """HybridFlow Fig. 8: train 1-4-2, generate 1-2-2-2."""
    mesh = tiny.mesh_of((2, 1, 4, 2))
    assert groups(mesh, "tensor", "micro") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert groups(mesh, "tensor") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert groups(mesh, "micro_pipe", "micro") == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_tensor_ranks_are_neighbours_whatever_the_stages():
    mesh = make_mesh(1, 1, 4, 2, jax.devices(), pipe=2, generation_pipe=1)
    assert groups(mesh, "tensor", "micro") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert groups(mesh, "pipe", "micro_pipe") == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_generation_takes_every_nth_stage_and_trades_with_the_stages_between():
    mesh = make_mesh(1, 1, 2, 2, jax.devices(), pipe=4, generation_pipe=2)
    assert sorted(groups(mesh, "pipe")) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert sorted(groups(mesh, "micro_pipe", "micro")) == [(0, 2), (1, 3), (4, 6), (5, 7)]


def test_a_wrong_number_of_devices_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"needs 4 devices, got 8"):
        make_mesh(data=2, fsdp=1, tensor=2, generation_tensor=1, devices=jax.devices())


def test_a_generation_size_that_does_not_divide_the_training_size_is_refused():
    with pytest.raises(ValueError, match=r"generation tensor size 3 does not divide the training size 4"):
        make_mesh(data=2, fsdp=1, tensor=4, generation_tensor=3, devices=jax.devices())
    with pytest.raises(ValueError, match=r"generation pipe size 2 does not divide the training size 1"):
        make_mesh(8, 1, 1, 1, jax.devices(), pipe=1, generation_pipe=2)
