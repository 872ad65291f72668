"""The transition experiment's rows are the paper's formulas, in the cases that run and in those compiled."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from experiments import transition
from jaxflow.engine.layout_rules import Parallelism
from jaxflow.engine.sharding import broken_prefixes

ROOT = pathlib.Path(__file__).parents[2]
FIGURE_8 = transition.CASES[0]


def test_the_vanilla_order_breaks_the_prefix_rule_wherever_ranks_are_split():
    assert set(broken_prefixes(transition.vanilla_table())) == {
        "layers",
        "vocabulary",
        "heads",
        "kv_heads",
        "mlp",
    }


def test_formulas_are_table_2_where_no_weight_is_replicated():
    """13B, T8 to t_g 4: 7/8 M and M/8; the norms are a ten-thousandth of the model."""
    config = transition.LLAMA_13B
    p = Parallelism(data=8, fsdp=1, tensor=8, generation_tensor=4, pipe=1, generation_pipe=1)
    size = 4 * config.parameter_count
    shares = {
        engine: dataclasses.astuple(transition.formulas(engine, config, p)) for engine in transition.ENGINES
    }
    expected = {
        "hybridflow": (1 / 8, 0, 1 / 4),
        "hybridflow_v": (7 / 8, 1 / 8, 1),
        "ds_chat": (63 / 64, 1 / 64, 1),
    }
    for engine, figures in expected.items():
        assert [figure / size for figure in shares[engine]] == pytest.approx(figures, abs=1e-4), engine


@pytest.mark.slow
def test_every_row_is_what_its_engine_s_formula_says(tmp_path):
    file = tmp_path / "rows.json"
    ran = subprocess.run(
        [sys.executable, str(ROOT / "experiments/transition.py"), "--json", str(file)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = json.loads(file.read_text())
    assert {(row["devices"], row["executed"]) for row in rows} == {
        (8, True),
        (16, True),
        (64, False),
        (128, False),
    }
    for row in rows:
        assert row["measured_bytes"] == row["formula_bytes"], row["case"]
        assert row["measured_bytes"] >= row["minimum_bytes"]
        assert row["peak_bytes"] >= row["formula_peak_bytes"]
        if row["engine"] == "hybridflow":
            assert row["measured_bytes"] == row["minimum_bytes"]
            assert row["redundant_bytes"] == 0
            assert row["peak_bytes"] <= row["formula_peak_bytes"] + 2 * row["largest_bucket_bytes"]
        assert row["redundant_bytes"] <= row["formula_redundant_bytes"]


@pytest.mark.slow
def test_the_paper_s_example_comes_out_of_programs_that_ran():
    """Fig. 8: M/4 for HybridFlow and 3M/4 for the vanilla grouping, of the weights that are cut at all."""
    config = FIGURE_8.config
    cut = 4 * (config.parameter_count - (2 * config.layers + 1) * config.width)
    ours, vanilla = (transition.row_of(engine, FIGURE_8) for engine in transition.ENGINES[:2])
    assert ours.executed and vanilla.executed
    assert (ours.measured_bytes, ours.redundant_bytes) == (cut // 4, 0)
    assert (vanilla.measured_bytes, vanilla.redundant_bytes) == (3 * cut // 4, cut // 4)
    (gather,) = ours.collectives
    assert gather["groups"] == ((0, 1), (2, 3), (4, 5), (6, 7))
