"""Transfer protocols against the definition, worked out device by device."""

import itertools

import numpy as np
import pytest

from jaxflow.workers.transfer import (
    ALL_TO_ALL,
    DP_PROTO,
    ONE_TO_ALL,
    THREE_D_ALL_MICRO_DP,
    THREE_D_PP_ONLY,
    THREE_D_PROTO,
    Grid,
    RowsOf,
    TransferProtocol,
    ValuesOf,
    gather,
    split,
)

# data, fsdp, expert, pipe, micro_pipe, tensor, micro; devices per process
GRIDS = {
    "one process": ((2, 1, 1, 1, 1, 1, 2), 4),
    "rows apart": ((2, 2, 1, 1, 1, 1, 1), 1),
    "peers in one process": ((2, 1, 1, 1, 1, 1, 2), 2),
    "tensor over processes": ((2, 1, 1, 1, 1, 2, 2), 2),
    "experts, and micro over processes": ((1, 1, 2, 1, 1, 1, 4), 2),
    "stages over processes": ((2, 1, 1, 2, 2, 1, 2), 2),
    "three replicas": ((3, 1, 1, 1, 1, 1, 2), 2),
}
AXES = ("data", "fsdp", "expert", "pipe", "micro_pipe", "tensor", "micro")
ON_EVERY_GRID = pytest.mark.parametrize("sizes", GRIDS.values(), ids=GRIDS)
ROWS = (24, 7, 1, 0)


def grid_of(sizes):
    shape, per_process = sizes
    return Grid(dict(zip(AXES, shape, strict=True)), per_process)


def rows_by_device(grid, axes, rows):
    """The rows of every device, in mesh order, by the definition: equal blocks, the last ones short."""
    shape = tuple(grid.axes.values())
    blocks = int(np.prod([grid.axes[axis] for axis in axes]))
    size = -(-rows // blocks)
    owned = []
    for coordinates in itertools.product(*map(range, shape)):
        index = 0
        for axis, coordinate in zip(grid.axes, coordinates, strict=True):
            if axis in axes:
                index = index * grid.axes[axis] + coordinate
        owned.append(set(range(rows)[index * size : (index + 1) * size]))
    return owned


def rows_by_process(grid, axes, rows):
    devices = rows_by_device(grid, axes, rows)
    n = grid.devices_per_process
    return [set().union(*devices[i : i + n]) for i in range(0, len(devices), n)]


def flat(ranges):
    return [row for run in ranges for row in run]


SPLITS = {
    THREE_D_PROTO: ("data", "fsdp", "expert"),
    THREE_D_ALL_MICRO_DP: ("data", "fsdp", "expert", "micro_pipe", "micro"),
    DP_PROTO: AXES,
}


@ON_EVERY_GRID
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("protocol", SPLITS, ids=lambda protocol: protocol.name)
def test_each_process_gets_the_rows_of_its_devices_and_no_other(protocol, sizes, rows):
    grid = grid_of(sizes)
    given = protocol.distribute(grid, rows)
    assert [flat(ranges) for ranges in given] == [
        sorted(wanted) for wanted in rows_by_process(grid, SPLITS[protocol], rows)
    ]


@ON_EVERY_GRID
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("protocol", SPLITS, ids=lambda protocol: protocol.name)
def test_each_row_is_collected_once_from_the_first_process_that_has_it(protocol, sizes, rows):
    grid = grid_of(sizes)
    collected = protocol.collect(grid, rows)
    assert isinstance(collected, RowsOf)
    has = rows_by_process(grid, SPLITS[protocol], rows)
    for process, ranges in enumerate(collected.shares):
        earlier = set().union(*has[:process])
        assert flat(ranges) == sorted(has[process] - earlier)
    assert sorted(row for ranges in collected.shares for row in flat(ranges)) == list(range(rows))


@ON_EVERY_GRID
def test_one_to_all_gives_everything_to_everyone_and_hears_everyone(sizes):
    grid = grid_of(sizes)
    assert [flat(ranges) for ranges in ONE_TO_ALL.distribute(grid, 5)] == [list(range(5))] * grid.processes
    assert ONE_TO_ALL.collect(grid, 5) == ValuesOf(tuple(range(grid.processes)))


def test_pipeline_stages_each_answer_once():
    grid = grid_of(GRIDS["stages over processes"])
    stages = rows_by_process(grid, ("pipe", "micro_pipe"), 4)
    answering = THREE_D_PP_ONLY.collect(grid, 4).processes
    assert [stages[process] for process in answering] == [{0}, {1}, {2}, {3}]
    assert answering == (0, 1, 2, 3)


def test_all_to_all_leaves_the_distribution_to_the_caller():
    grid = grid_of(GRIDS["rows apart"])
    assert ALL_TO_ALL.distribute(grid, 4) == ((),) * 4
    assert ALL_TO_ALL.collect(grid, 4) == ValuesOf((0, 1, 2, 3))


def test_a_protocol_of_ones_own_is_a_pair_of_functions():
    own = TransferProtocol("LEADERS", split("data"), gather("data"))
    grid = grid_of(GRIDS["three replicas"])
    assert [flat(ranges) for ranges in own.distribute(grid, 6)] == [[0, 1], [2, 3], [4, 5]]
