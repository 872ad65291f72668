"""Dropped axes are found where generation's are a prefix; gathering over them puts every part in its place."""

import jax
import numpy as np
import pytest

from jaxflow.engine.compiled import collectives_of
from jaxflow.engine.gather import dropped_axes, gather
from jaxflow.engine.mesh import make_mesh

MESH = make_mesh(1, 2, 4, 2, jax.devices())
WHOLE = np.arange(8 * 16 * 4, dtype=np.float32).reshape(8, 16, 4)


def sharding(*spec, mesh=MESH):
    return jax.NamedSharding(mesh, jax.P(*spec))


@pytest.mark.parametrize(
    ("source", "target", "dropped"),
    [
        (("fsdp", ("tensor", "micro")), (None, "tensor"), (("fsdp",), ("micro",), ())),
        ((None, "tensor"), (None, ("tensor",)), ((), (), ())),
        ((("tensor", "micro"),), (), (("tensor", "micro"), (), ())),
        ((("micro", "tensor"),), ("tensor",), None),
        (("tensor",), (("tensor", "micro"),), None),
        (("tensor",), (None, "tensor"), None),
    ],
)
def test_dropped_axes_exist_where_the_targets_are_a_prefix(source, target, dropped):
    assert dropped_axes(sharding(*source), sharding(*target), 3) == dropped


def test_other_meshes_and_single_devices_drop_nothing():
    other = make_mesh(1, 2, 4, 4, jax.devices())
    assert dropped_axes(sharding("fsdp"), sharding(mesh=other), 1) is None
    assert dropped_axes(jax.sharding.SingleDeviceSharding(jax.devices()[0]), sharding(), 1) is None


@pytest.mark.parametrize(
    ("source", "target", "gathers"),
    [
        (("fsdp", ("tensor", "micro")), (None, "tensor"), 2),
        ((None, None, ("tensor", "micro")), (), 1),
        ((("fsdp", "micro", "tensor"),), ("fsdp",), 1),
    ],
)
def test_every_part_comes_to_its_place_by_one_all_gather_per_dimension(source, target, gathers):
    source, target = sharding(*source), sharding(*target)
    dropped = dropped_axes(source, target, 3)
    program = jax.jit(lambda array: gather(array, source, target, dropped), out_shardings=target)
    array = jax.device_put(WHOLE, source)
    np.testing.assert_array_equal(np.asarray(program(array)), WHOLE)
    for shard in program(array).addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), WHOLE[shard.index])
    found = collectives_of(program.lower(array).compile().as_text())
    assert [one.kind for one in found] == ["all-gather"] * gathers
