import math

from jaxflow.tracking.report import bar, sparkline, summary
from jaxflow.types import Span


def row(step, /, accuracy=None, **stages):
    seconds = {f"timing_s/{stage}": value for stage, value in stages.items()}
    speed = {"perf/total_num_tokens": 1000.0, "perf/throughput": 1000.0 / stages["step"]} if stages else {}
    curve = (
        {} if accuracy is None else {"val-core/all/acc/mean@1": accuracy, "val-core/add/acc/mean@1": accuracy}
    )
    return {"training/global_step": step, **seconds, **speed, **curve}


ROWS = [
    row(0, accuracy=0.4),
    row(1, step=2.0, gen=1.0, update_actor=0.5),
    row(2, accuracy=0.95, step=4.0, gen=3.0, update_actor=0.5),
    row(3, accuracy=0.9, step=2.0, gen=1.0, update_actor=0.5),
]


def test_the_summary_tells_steps_speed_curve_times_and_files(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"x" * 20_000)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "weights").write_bytes(b"x" * 1_500_000)
    lines = summary(
        ROWS, started=100.0, ended=342.0, workdir=tmp_path, checkpoint_steps=(2, 3), spans_by_step={}
    )
    assert lines == [
        "steps         3 (1 to 3), 8.0 s",
        "wall time     4 min 02 s since this start",
        "tokens        3,000, 375 per second and device",
        "accuracy      all: first 0.400 → best 0.950 (step 2) → last 0.900  ▁█▇",
        "time went to",
        "  generate       62.5%        5.0 s  ███████████████",
        "  update actor   18.8%        1.5 s  ████▌",
        "  other          18.8%        1.5 s  ████▌",
        "checkpoints   step 2, step 3",
        f"files in {tmp_path}",
        "  checkpoints/           1.50 MB",
        "  metrics.jsonl          0.02 MB",
    ]


def test_a_run_that_ended_before_its_first_step_still_has_a_summary(tmp_path):
    lines = summary([], started=0.0, ended=1.0, workdir=tmp_path, checkpoint_steps=(), spans_by_step={})
    assert lines[:3] == ["steps         none", "wall time     1.0 s since this start", "checkpoints   none"]


def test_several_data_sources_have_a_curve_each_and_one_of_all(tmp_path):
    rows = [{"training/global_step": 0, **{f"val-core/{s}/acc/mean@1": 0.5 for s in ("a", "b", "all")}}]
    lines = summary(rows, started=0.0, ended=1.0, workdir=tmp_path, checkpoint_steps=(), spans_by_step={})
    assert [line.split()[1] for line in lines if line.startswith("accuracy")] == ["a:", "all:", "b:"]


def test_stages_that_overlap_never_add_up_to_more_than_everything(tmp_path):
    rows = [row(1, step=2.0, gen=2.0, testing=6.0)]
    lines = summary(rows, started=0.0, ended=9.0, workdir=tmp_path, checkpoint_steps=(), spans_by_step={})
    assert any("validate" in line and "75.0%" in line for line in lines)
    assert any("generate" in line and "25.0%" in line for line in lines)


def spans_lasting(seconds):
    return [Span("main", "actor", "gen", 1000.0, seconds, 0, 0)]


def drawn_steps(tmp_path, spans_by_step):
    lines = summary([], 0.0, 1.0, tmp_path, (), spans_by_step)
    return [line for line in lines if line.startswith("pools in step")]


def test_the_step_of_median_wall_time_is_drawn_and_the_first_never(tmp_path):
    spans = {step: spans_lasting(seconds) for step, seconds in ((4, 3.0), (1, 5.0), (2, 9.0), (3, 5.5))}
    assert drawn_steps(tmp_path, spans) == ["pools in step 3, a typical one"]
    lines = summary(ROWS, 0.0, 1.0, tmp_path, (), spans)
    begin = lines.index("pools in step 3, a typical one")
    assert lines[begin + 1] == f"  main 100% |{'g' * 72}|"
    assert lines[begin + 4] == "  calls add up to 5.5 s in 5.5 s of wall time: overlap 1.00"
    assert lines[begin - 1].startswith("  other") and lines[begin + 5].startswith("checkpoints")


def test_an_only_step_is_drawn_and_steps_without_spans_are_not(tmp_path):
    assert drawn_steps(tmp_path, {1: [], 7: spans_lasting(2.0)}) == ["pools in step 7, a typical one"]
    assert drawn_steps(tmp_path, {}) == drawn_steps(tmp_path, {1: [], 2: []}) == []


def test_a_sparkline_spans_its_values_from_lowest_to_highest_block():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 40) == "▁▂▃▄▅▆▇█"
    assert sparkline([-5.0, 5.0], 40) == "▁█"
    assert sparkline([0.0, math.nan, 1.0], 40) == "▁ █"
    assert sparkline([math.nan, math.inf], 40) == "  "
    assert sparkline([], 40) == ""


def test_a_flat_curve_is_drawn_in_the_middle():
    assert set(sparkline([0.3] * 5, 40)) == {"▅"}


def test_a_long_curve_keeps_its_ends_and_its_width():
    drawn = sparkline([0.0, *[0.5] * 500, 1.0], 40)
    assert len(drawn) == 40 and drawn[0] == "▁" and drawn[-1] == "█"


def test_bars_are_exact_to_an_eighth_of_a_column():
    assert bar(0.0, 8) == "" and bar(1.0, 8) == "█" * 8
    assert bar(0.5, 8) == "████" and bar(1 / 64, 8) == "▏" and bar(3.0, 2) == "██"
