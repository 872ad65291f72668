"""Collectives and memory are read off compiled programs as XLA prints them."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from jaxflow.engine.compiled import collectives_of, groups_of, memory_of, received_by_position


@pytest.mark.parametrize(
    ("line", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[4], x", ((0, 1), (2, 3))),
        ("replica_groups=[4,2]<=[2,2,2]T(1,0,2), x", ((0, 1), (4, 5), (2, 3), (6, 7))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", ((0, 2), (1, 3))),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,2,2]T(0,2,1)) {'b'}",
            ((0, 2), (1, 3), (4, 6), (5, 7)),
        ),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ],
)
def test_device_groups_are_read_in_every_notation(line, groups):
    assert groups_of(line) == groups


def test_a_notation_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="notation"):
        groups_of("replica_groups=everyone")


@pytest.mark.parametrize(
    ("line", "received"),
    [
        ("%a = f32[8,4]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}", 8 * 4 * 4 * 3 // 4),
        ("%a = bf16[8]{0} all-gather(%p), replica_groups=[4,2]<=[8], dimensions={0}", 8),
        ("%a = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8]", 24),
        ("%a = (f32[2]{0}, f32[4]{0}) all-reduce(%p, %q), replica_groups=[2,4]<=[8], to_apply=%s", 36),
        ("%a = f32[2]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], to_apply=%s", 24),
        ("%a = pred[16]{0} all-to-all(%p), replica_groups=[2,4]<=[8]", 12),
    ],
)
def test_each_device_of_a_group_receives_what_its_peers_hold(line, received):
    assert received_by_position(collectives_of(line), 8) == [received] * 8


def test_a_permutation_gives_to_those_that_get_from_another():
    text = "%a = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{2,2}}"
    assert received_by_position(collectives_of(text), 3) == [0, 16, 0]


def test_a_program_s_memory_and_collectives_are_per_device():
    mesh = tiny.mesh_of((8, 1, 1, 1))
    cut, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    array = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=cut)
    program = jax.jit(lambda x: x * 1, out_shardings=whole).lower(array).compile()
    memory = memory_of(program)
    assert (memory.arguments, memory.results, memory.aliased) == (64 * 16 * 4 // 8, 64 * 16 * 4, 0)
    assert memory.peak >= memory.arguments + memory.results
    (gather,) = collectives_of(program.as_text())
    assert gather.kind == "all-gather" and gather.groups == (tuple(range(8)),)
    assert gather.received_bytes == memory.results - memory.arguments
