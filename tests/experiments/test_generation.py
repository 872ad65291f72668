"""The generation experiment counts what it says it counts, and its quick size runs both sides."""

import json
import math

import jax
import numpy as np
import pytest
from generation_sides import ON_CPU, ON_GPU, QUICK, limit, tail_lengths

from experiments import generation
from experiments.generation import merged
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import untruncated
from jaxflow.engine.sharding import generation_layout
from jaxflow.engine.slots import SlotPrograms
from jaxflow.mapping.flop_count import count_flops
from jaxflow.models.transformer import LanguageModel, describe


def test_most_lengths_are_short_and_few_are_at_the_limit():
    lengths = tail_lengths(512, 128, seed=0)
    assert lengths.min() >= 1 and lengths.max() == 128
    assert 0 < (lengths == 128).sum() < 15 and np.median(lengths) < 0.2 * 128
    assert np.array_equal(np.sort(lengths), np.sort(tail_lengths(512, 128, seed=1)))


@pytest.mark.parametrize("load", [*ON_CPU, *ON_GPU], ids=lambda load: load.model)
def test_the_arithmetic_of_the_limit_is_that_of_the_traced_programs(load):
    """A step's products, as traced for the sizes that are measured: heads of the vocabulary's padding count there."""

    batch, positions = next(iter(load.batches)), load.prompt_tokens + load.response_tokens
    mesh = make_mesh(1, 1, 1, 1, jax.devices()[:1])
    model = describe(load.config, LanguageModel)
    programs = SlotPrograms(model, generation_layout(mesh, load.config), load.dtype, 1)
    traced = programs.trace_decode(batch, positions, untruncated(load.response_tokens))
    lengths = np.ones(batch, np.int32)
    seconds, _ = limit(load, batch, lengths, flops_rate=1.0, read_rate=math.inf)
    prefill, _ = limit(load, batch, 0 * lengths, flops_rate=1.0, read_rate=math.inf)
    heads = 4.0 * load.config.layers * load.config.heads * load.config.head_width
    # The traced step attends to the whole cache
    unseen = batch * heads * (positions - load.prompt_tokens - 1)
    assert count_flops(traced.jaxpr.jaxpr, 1) == pytest.approx(seconds - prefill + unseen, rel=0.01)


def test_rows_that_are_measured_again_replace_the_old_ones_and_long_tails_are_held_against_fixed_lengths():
    fields = {name: None for name in generation.Row.__dataclass_fields__}

    def row(batch, case, rate):
        return generation.Row(
            **{
                **fields,
                "model": "a",
                "batch": batch,
                "case": case,
                "tokens_per_second": rate,
                "parameters": 1,
            }
        )

    old = [row(16, "fixed", 10.0), row(64, "fixed", 40.0), row(64, "long_tail", 20.0)]
    rows = merged(old, [row(16, "long_tail", 9.0), row(64, "fixed", 50.0)])
    told = [(one.batch, one.case, one.tokens_per_second, one.share_of_fixed) for one in rows]
    assert told == [
        (16, "fixed", 10.0, None),
        (16, "long_tail", 9.0, 0.9),
        (64, "fixed", 50.0, None),
        (64, "long_tail", 20.0, 0.4),
    ]


@pytest.mark.slow
def test_the_quick_size_measures_both_cases_against_transformers(tmp_path, capsys):
    file = tmp_path / "rows.json"
    generation.main(["--quick", "--baselines", "eager", "--repeats", "1", "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [row["case"] for row in rows] == ["fixed", "long_tail"]
    (load,) = QUICK
    for row in rows:
        assert row["baseline"] == "transformers eager"
        assert row["ratio"] == pytest.approx(row["tokens_per_second"] / row["baseline_tokens_per_second"])
        assert row["limit_share"] == pytest.approx(row["tokens_per_second"] / row["limit_tokens_per_second"])
    (batch,) = load.batches
    assert rows[0]["tokens"] == batch * load.response_tokens and rows[1]["requests"] == load.tail_requests
    assert "of fixed" in capsys.readouterr().out
