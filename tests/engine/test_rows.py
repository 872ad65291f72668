"""Every row has one block, every process the blocks of its devices, and what is gathered is in order."""

import jax
import numpy as np
import pytest
import worlds

from jaxflow.engine.mesh import AXES, make_mesh
from jaxflow.engine.rows import EMPTY, Rows, block

TRAINING, GENERATION = ("data", "fsdp", "expert"), ("data", "fsdp", "expert", "micro_pipe", "micro")
# (data, fsdp, training tensor size, generation tensor size) of four devices: blocks that one process holds alone,
# that both hold, and that they hold in turns.
MESHES = ((2, 2, 1, 1), (2, 1, 2, 2), (1, 1, 4, 4), (1, 1, 4, 2))
TOTALS = (0, 1, 5, 12)


@pytest.mark.parametrize("blocks", [1, 2, 3, 8])
def test_blocks_are_neighbours_of_one_size_and_only_the_last_are_shorter(blocks):
    for total in range(20):
        slices = [block(total, blocks, index) for index in range(blocks)]
        assert [row for cut in slices for row in range(total)[cut]] == list(range(total))
        sizes = [cut.stop - cut.start for cut in slices]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == int(np.ceil(total / blocks))
        assert sum(0 < size < sizes[0] for size in sizes) <= 1


def mesh_of(sizes):
    return make_mesh(*sizes, devices=jax.devices()[:4])


@pytest.mark.parametrize("axes", [TRAINING, GENERATION, AXES])
@pytest.mark.parametrize("sizes", MESHES)
def test_one_process_holds_every_block_and_gets_its_rows_back(sizes, axes):
    rows = Rows(mesh_of(sizes), axes)
    assert rows.held == tuple(range(rows.blocks))
    numbers = np.arange(3 * rows.blocks)
    np.testing.assert_array_equal(rows.gather(numbers), numbers)
    batch = {"row": numbers.astype(np.int32), "position": np.outer(numbers, np.ones(5, np.int32))}
    placed = rows.place(batch)
    for shard in placed["position"].addressable_shards:
        assert shard.data.shape == (3, 5)
    for name, leaf in rows.fetch(placed).items():
        np.testing.assert_array_equal(leaf, batch[name])


def test_rows_are_cut_into_their_blocks():
    rows = Rows(mesh_of((2, 2, 1, 1)), TRAINING)
    cut = rows.split(np.array([0, 3, 4, 9]), 13)
    assert [part.tolist() for part in cut] == [[0, 3], [4], [9], []]
    table = np.array([[0, 3], [4, EMPTY], [9, EMPTY], [EMPTY, EMPTY]])
    assert rows.local(table, 13).tolist() == table.reshape(-1).tolist()


def rows_of_a_process(cases):
    """Gather, place and fetch this process's rows of each case; refuse another's."""
    told = {}
    for case, (sizes, axes, total, mine) in enumerate(cases):
        rows, local = Rows(mesh_of(sizes), tuple(axes)), np.asarray(mine[jax.process_index()], np.int32)
        told[f"gathered{case}"] = rows.gather(np.stack([local, 7 * local], axis=1))
        size = -(-total // rows.blocks)
        if size > 0:
            table = np.full(rows.blocks * size, EMPTY)
            table[:total] = np.arange(total)
            places = rows.local(table.reshape(rows.blocks, size), total)
            taken = np.where(places == EMPTY, EMPTY, np.append(local, EMPTY)[places]).astype(np.int32)
            placed = rows.place(taken)
            assert placed.shape == (rows.blocks * size,)
            # What the device at a place on the mesh holds is what the rule says, not what the process says.
            for shard in placed.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), table[shard.index])
            told[f"fetched{case}"] = rows.fetch(placed)
    with pytest.raises(ValueError, match="process 0 has 2 of 6 rows"):
        Rows(mesh_of((2, 2, 1, 1)), TRAINING).gather(np.arange(2 if jax.process_index() == 0 else 4))
    return told


def test_two_processes_see_all_numbers_in_order_and_place_their_own_rows(tmp_path):
    cases = [
        (sizes, axes, total, [worlds.rows_of_process(process, 2, sizes, axes, total) for process in range(2)])
        for sizes in MESHES
        for axes in (TRAINING, GENERATION, AXES)
        for total in TOTALS
    ]
    told = worlds.run(rows_of_a_process, 2, 2, tmp_path, cases)
    for case, (_, _, total, mine) in enumerate(cases):
        for process in range(2):
            gathered = told[process][f"gathered{case}"]
            np.testing.assert_array_equal(gathered, np.outer(np.arange(total), [1, 7]))
            if total > 0:
                fetched = told[process][f"fetched{case}"]
                assert fetched[fetched != EMPTY].tolist() == mine[process]
