"""Every element of a target shard comes from a device that holds it, once, from the nearest one."""

import jax
import numpy as np
import pytest
import tiny

from jaxflow.engine.shards import (
    Holder,
    Shard,
    elements,
    overlap,
    pieces,
    received_elements,
    redundant_elements,
    shards_of,
    within,
)

MESH = tiny.mesh_of((1, 2, 4, 2))
SHAPE = (16, 8)
SPECS = [
    jax.P(),
    jax.P("fsdp"),
    jax.P(("tensor", "micro"), "fsdp"),
    jax.P("tensor"),
    jax.P(None, ("micro", "tensor")),
]


def sharding(spec):
    return jax.NamedSharding(MESH, spec)


def masks(shape, where):
    """What each device holds, as an array of booleans: the slow, sure way to count."""
    found = {}
    for device, index in where.devices_indices_map(shape).items():
        found[device.id] = np.zeros(shape, bool)
        found[device.id][index] = True
    return found


def pools(spec_of_one, spec_of_other, per_process):
    """Shards of two pools that know nothing of one another, each of several processes."""
    return [
        tuple(
            Shard(Holder(pool, i // per_process, shard.holder.device), shard.extent)
            for i, shard in enumerate(shards_of(pool, SHAPE, sharding(spec)))
        )
        for pool, spec in (("one", spec_of_one), ("other", spec_of_other))
    ]


@pytest.mark.parametrize("source", SPECS, ids=str)
@pytest.mark.parametrize("target", SPECS, ids=str)
def test_counts_are_those_of_the_elements_themselves(source, target):
    before, after = masks(SHAPE, sharding(source)), masks(SHAPE, sharding(target))
    lacking = {device: int((after[device] & ~before[device]).sum()) for device in after}
    assert received_elements(SHAPE, sharding(source), sharding(target)) == lacking
    kept = {device: int((before[device] & ~after[device]).sum()) for device in after}
    assert redundant_elements(SHAPE, sharding(source), sharding(target)) == kept


def test_a_device_that_held_nothing_receives_all_of_its_shard():
    here = jax.NamedSharding(tiny.ONE_DEVICE, jax.P())
    everywhere = jax.NamedSharding(tiny.mesh_of((2, 1, 1, 1)), jax.P("data"))
    first, second = (device.id for device in jax.devices()[:2])
    assert received_elements((10,), here, everywhere) == {first: 0, second: 5}


def test_boxes_that_do_not_meet_have_nothing_in_common():
    assert elements(overlap(((0, 4), (0, 2)), ((4, 8), (0, 2)))) == 0
    assert overlap(((0, 4),), ((3, 8),)) == ((3, 4),)
    assert within(((3, 4),), ((2, 6),)) == (slice(1, 2),)


@pytest.mark.parametrize("source", SPECS, ids=str)
@pytest.mark.parametrize("target", SPECS, ids=str)
def test_pieces_make_up_each_target_shard_once_and_their_senders_hold_them(source, target):
    sources, targets = pools(source, target, per_process=4)
    held = {shard.holder: shard.extent for shard in sources}
    count = {shard.holder: np.zeros(SHAPE, int) for shard in targets}
    for piece in pieces(sources, targets):
        assert overlap(piece.extent, held[piece.source]) == piece.extent
        count[piece.target][tuple(slice(*bounds) for bounds in piece.extent)] += 1
    for shard in targets:
        expected = np.zeros(SHAPE, int)
        expected[tuple(slice(*bounds) for bounds in shard.extent)] = 1
        np.testing.assert_array_equal(count[shard.holder], expected)


def test_what_a_device_holds_it_takes_from_itself():
    source, target = (shards_of("", SHAPE, sharding(spec)) for spec in (SPECS[2], SPECS[3]))
    received = dict.fromkeys((shard.holder.device for shard in target), 0)
    for piece in pieces(source, target):
        if piece.source != piece.target:
            received[piece.target.device] += elements(piece.extent)
    assert received == received_elements(SHAPE, sharding(SPECS[2]), sharding(SPECS[3]))


def test_replicas_share_the_sending():
    sources, targets = pools(jax.P(), jax.P(("fsdp", "tensor", "micro")), per_process=1)
    assert len({piece.source for piece in pieces(sources, targets)}) == 8
