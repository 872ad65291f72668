"""What the compiler made of the engine's programs: which collectives, between whom, of which sizes."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest
import tiny

from jaxflow.engine.compiled import collectives_of, received_by_position
from jaxflow.engine.generate import CHUNK_STEPS

pytestmark = pytest.mark.slow  # compiles every program twice over, without a cache

TESTS = pathlib.Path(__file__).parent
# (data, fsdp, tensor, generation tensor, stages)
TENSOR, EVERYTHING, STAGES = (2, 1, 4, 2, 1), (2, 2, 2, 1, 1), (1, 2, 2, 1, 2)
VOCABULARY = 320  # padded, of the programs' model
LOGIT_CHUNK_ELEMENTS = 5120


class Compiled:
    """The programs of one mesh as optimised HLO, and what the compiler had to say."""

    def __init__(self, directory, sizes):
        arguments = [str(directory), *map(str, sizes), str(LOGIT_CHUNK_ELEMENTS)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "8",
            # The machine code is not looked at: the cheapest will do.
            "XLA_FLAGS": f"--xla_dump_to={directory} --xla_dump_hlo_as_text --xla_backend_optimization_level=0",
        }
        ran = subprocess.run(
            [sys.executable, str(TESTS / "hlo_programs.py"), *arguments],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        self.warnings = ran.stderr
        self.files = json.loads(ran.stdout.splitlines()[-1])

    def text(self, program):
        return "\n".join(pathlib.Path(file).read_text() for file in self.files[program])

    def collectives(self, program):
        return collectives_of(self.text(program))


def computations_below(text, root):
    """Return the lines of one computation and of all that it calls."""
    bodies, name = {}, None
    for line in text.splitlines():
        start = re.match(r"(?:ENTRY )?%([\w.\-]+) \(", line)
        if start is not None:
            name = start[1]
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    reached, waiting = set(), [root]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            called = re.findall(r"(?:body|condition|calls|to_apply)=%([\w.\-]+)", "\n".join(bodies[name]))
            waiting.extend(called)
    return "\n".join("\n".join(bodies[name]) for name in reached)


@pytest.fixture(scope="module", params=[TENSOR, EVERYTHING], ids=["tensor", "everything"])
def compiled(request, tmp_path_factory):
    return request.param[:4], Compiled(tmp_path_factory.mktemp("hlo"), request.param)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    return Compiled(tmp_path_factory.mktemp("hlo"), STAGES)


def sharded_elements():
    """The elements of all weight matrices: everything that is cut over tensor and fsdp."""
    vocabulary_rows = 2 * (VOCABULARY - tiny.CONFIG.padded_vocabulary_size) * tiny.CONFIG.width
    norms = (2 * tiny.CONFIG.layers + 1) * tiny.CONFIG.width
    return tiny.CONFIG.parameter_count + vocabulary_rows - norms


def test_the_switch_gathers_inside_micro_data_parallel_groups_and_nothing_else(compiled):
    (_, fsdp, tensor, generation_tensor), programs = compiled
    collectives = programs.collectives("transition")
    assert {collective.kind for collective in collectives} == {"all-gather"}
    micro = tensor // generation_tensor
    neighbours = {tuple(range(first, first + micro)) for first in range(0, 8, micro)}
    # Devices that differ in their place on the fsdp axis alone: what ZeRO-3 gathers, no more.
    stride = tensor
    fsdp_groups = {
        tuple(first + stride * i for i in range(fsdp))
        for block in range(0, 8, stride * fsdp)
        for first in range(block, block + stride)
    }
    matrices = 9
    assert [set(collective.groups) for collective in collectives].count(neighbours) == matrices
    assert all(set(collective.groups) in (neighbours, fsdp_groups) for collective in collectives)
    assert len(collectives) == (matrices if fsdp == 1 else 2 * matrices)


def test_the_switch_receives_the_bytes_of_the_formula(compiled):
    (_, fsdp, tensor, generation_tensor), programs = compiled
    elements = sharded_elements()
    expected = 4 * (elements // generation_tensor - elements // (tensor * fsdp))
    assert received_by_position(programs.collectives("transition"), 8) == [expected] * 8


def test_the_way_back_is_local(compiled):
    assert compiled[1].collectives("way back") == ()


def test_no_program_rematerialises_an_array_whole(compiled):
    assert "Involuntary full rematerialization" not in compiled[1].warnings


def test_a_pipeline_rematerialises_nothing_and_gathers_no_weights_of_other_stages(staged):
    assert "Involuntary full rematerialization" not in staged.warnings
    # Positions of the mesh by stage: fsdp 2, stages 2, tensor 2.
    for program in ("log-probs", "values", "actor update", "critic update"):
        gathers = [one for one in staged.collectives(program) if one.kind == "all-gather"]
        assert any(one.kind == "collective-permute" for one in staged.collectives(program))
        assert {p // 2 % 2 - group[0] // 2 % 2 for one in gathers for group in one.groups for p in group} <= {
            0
        }
    assert {one.kind for one in staged.collectives("transition")} == {"all-gather"}
    assert staged.collectives("way back") == ()


def test_the_decode_loop_gathers_no_weights(compiled):
    (_, _, _, generation_tensor), programs = compiled
    text = programs.text("generation")
    rows, heads = 4, tiny.CONFIG.kv_heads // generation_tensor
    cache, drawn = rf"f32\[{rows},{heads},\d+,{tiny.CONFIG.head_width}\]", rf"f32\[{rows},{CHUNK_STEPS}\]"
    loops = [
        re.search(r"body=%([\w.\-]+)", line)[1]
        for line in text.splitlines()
        if " while(" in line and re.search(cache, line) and re.search(drawn, line)
    ]
    assert len(loops) == 1
    inside = collectives_of(computations_below(text, loops[0]))
    if generation_tensor > 1:
        reductions = [collective for collective in inside if collective.kind == "all-reduce"]
        assert len(reductions) >= 2 * tiny.CONFIG.layers
    for collective in inside:
        assert collective.kind != "all-gather" or collective.elements <= rows * VOCABULARY, "a step's logits"


def shapes_of(text):
    """Return the dimensions of every array in a program."""
    found = re.findall(r"\b(?:pred|[a-z]+\d+\w*)\[([\d,]*)\]", text)
    return [tuple(map(int, dims.split(","))) if dims else () for dims in found]


def logits_among(shapes, tensor):
    """Return the shapes that have a vocabulary dimension and are no weight matrix, whole or cut."""
    vocabulary = {VOCABULARY, VOCABULARY // tensor}
    matrix = vocabulary | {tiny.CONFIG.width, tiny.CONFIG.width // 2}
    return [s for s in shapes if vocabulary & set(s) and len(s) > 1 and not set(s) <= matrix]


@pytest.mark.parametrize("program", ["log-probs", "actor update"])
def test_logits_exist_for_a_chunk_of_positions_at_most_and_never_travel(compiled, program):
    (_, _, tensor, _), programs = compiled
    sizes = [math.prod(shape) for shape in logits_among(shapes_of(programs.text(program)), tensor)]
    assert LOGIT_CHUNK_ELEMENTS // 4 <= max(sizes) <= LOGIT_CHUNK_ELEMENTS
    for collective in programs.collectives(program):
        assert not logits_among(collective.shapes, tensor)
