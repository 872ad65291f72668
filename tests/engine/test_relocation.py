"""Arrays move between meshes of one process unchanged, and leave nothing shared behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.relocation import relocate

HERE = make_mesh(2, 1, 2, 1, jax.devices()[:4])
THERE = make_mesh(1, 1, 4, 2, jax.devices()[4:])
OVERLAPPING = make_mesh(1, 1, 4, 2, jax.devices()[2:6])
REVERSED = make_mesh(2, 1, 2, 1, jax.devices()[3::-1])
WHOLE = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
SPECS = [jax.P(), jax.P("tensor", "data"), jax.P(None, ("tensor", "micro")), jax.P(("micro", "tensor"))]


@pytest.mark.parametrize("mesh", [THERE, OVERLAPPING, REVERSED], ids=["disjoint", "overlapping", "reversed"])
@pytest.mark.parametrize("to", SPECS, ids=str)
@pytest.mark.parametrize("start", SPECS, ids=str)
def test_an_array_arrives_unchanged_and_outlives_its_source(start, to, mesh):
    source = jax.device_put(WHOLE, jax.NamedSharding(HERE, start))
    target = jax.NamedSharding(mesh, to)
    arrived = relocate(source, target, "float32")
    source.delete()
    assert arrived.sharding == target
    np.testing.assert_array_equal(np.asarray(arrived), WHOLE)


def test_it_is_cast_before_it_moves():
    source = jax.device_put(WHOLE / 3, jax.NamedSharding(HERE, SPECS[1]))
    arrived = relocate(source, jax.NamedSharding(THERE, SPECS[2]), "bfloat16")
    np.testing.assert_array_equal(np.asarray(arrived), (WHOLE / 3).astype(jnp.bfloat16))


def test_no_device_but_a_shard_s_own_ever_gets_more_than_a_shard(monkeypatch):
    """Nothing that is sent is larger than the overlap of a source shard and a target shard."""
    sizes, send = [], jax.device_put

    def recording(array, device):
        sizes.append(array.size)
        return send(array, device)

    source = jax.device_put(WHOLE, jax.NamedSharding(HERE, jax.P(("tensor", "data", "micro"))))
    monkeypatch.setattr(jax, "device_put", recording)
    relocate(source, jax.NamedSharding(THERE, jax.P(None, ("tensor", "micro"))), "float32")
    assert sizes == [WHOLE.size // 16] * 16


def test_a_shard_that_one_piece_fills_is_that_piece():
    source = jax.device_put(WHOLE, jax.NamedSharding(tiny.ONE_DEVICE, jax.P()))
    arrived = relocate(source, jax.NamedSharding(THERE, jax.P()), "float32")
    assert {shard.data.shape for shard in arrived.addressable_shards} == {WHOLE.shape}
    tiny.assert_same_bits(arrived, WHOLE)
