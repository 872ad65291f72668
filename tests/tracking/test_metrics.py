import dataclasses
import errno
import itertools
import math

import numpy as np
import pytest

from jaxflow.tracking.jsonl import JsonLines
from jaxflow.tracking.metrics import MetricsWriter, read_metrics, timing_metrics, validation_metrics
from jaxflow.types import Sample


def fail(message):
    raise AssertionError(message)


def metrics_of(step):
    return {"actor/pg_loss": 0.1 * step, "critic/score/mean": float(np.float32(1 / (step + 1)))}


def test_rows_name_their_step_first_and_their_metrics_in_order(tmp_path):
    writer = MetricsWriter(tmp_path, False, fail)
    writer.write(7, {"b": np.float32(0.5), "a/x": math.nan, "training/global_step": 7.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"training/global_step": 7, "a/x": null, "b": 0.5}\n'
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert list(row) == ["training/global_step", "a/x", "b"] and math.isnan(row["a/x"])
    assert not (tmp_path / "tensorboard").exists()


def test_a_killed_and_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path):
    straight = MetricsWriter(tmp_path / "straight", True, fail)
    for step in range(10):
        straight.write(step, metrics_of(step))
    killed = MetricsWriter(tmp_path / "resumed", True, fail)
    for step in range(7):
        killed.write(step, metrics_of(step))
    path = tmp_path / "resumed" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    resumed = MetricsWriter(tmp_path / "resumed", True, fail)
    resumed.truncate_after(3)
    for step in range(4, 10):
        resumed.write(step, metrics_of(step))
    assert path.read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


def test_a_full_disk_is_told_once_counted_and_survived(tmp_path, monkeypatch):
    warnings = []
    writer = MetricsWriter(tmp_path, False, warnings.append)
    writer.write(1, {"x": 1.0})

    def full(self, rows):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonLines, "append", full)
    writer.write(2, {"x": 2.0})
    writer.write(3, {"x": 3.0})
    monkeypatch.undo()
    writer.write(4, {"x": 4.0})
    assert writer.failures == 2 and len(warnings) == 1 and "metrics.jsonl" in warnings[0]
    assert [row["training/global_step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 4]


def test_a_workdir_that_cannot_be_made_does_not_stop_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    warnings = []
    writer = MetricsWriter(tmp_path / "file" / "run", True, warnings.append)
    writer.write(1, {"x": 1.0})
    writer.truncate_after(0)
    writer.close()
    assert writer.failures == 3 and len(warnings) == 1


def sample(data_source, score, accuracy, finished=True, **numbers):
    return Sample(0, data_source, "p", "r", "g", score, accuracy, finished, numbers)


def test_validation_is_averaged_per_data_source_and_over_all_rows():
    rows = [
        sample("b", 1.0, 1.0, harm=2.0),
        sample("a/x", -1.0, 0.0, False),
        sample("b", 2.0, 1.0, harm=-1.0),
        sample("b", 0.0, 0.0),
    ]
    assert validation_metrics(rows, 1) == pytest.approx(
        {
            "val-core/a/x/acc/mean@1": 0.0,
            "val-core/a/x/reward/mean@1": -1.0,
            "val-aux/a/x/finished/mean@1": 0.0,
            "val-aux/a/x/rows": 1.0,
            "val-core/b/acc/mean@1": 2 / 3,
            "val-core/b/reward/mean@1": 1.0,
            "val-aux/b/finished/mean@1": 1.0,
            "val-aux/b/rows": 3.0,
            "val-aux/b/harm/mean@1": 0.5,
            "val-core/all/acc/mean@1": 0.5,
            "val-core/all/reward/mean@1": 0.5,
            "val-aux/all/finished/mean@1": 0.75,
            "val-aux/all/rows": 4.0,
            "val-aux/all/harm/mean@1": 0.5,
        }
    )


def test_no_validation_rows_give_no_metrics():
    assert validation_metrics([], 1) == validation_metrics([], 4) == {}


def test_speed_is_tokens_by_seconds_and_devices():
    seconds = {"gen": 2.0, "update_actor": 1.0, "save_checkpoint": 3.0, "step": 4.0}
    assert timing_metrics(seconds, tokens=1000, response_tokens=400, devices=2) == {
        "timing_s/gen": 2.0,
        "timing_s/update_actor": 1.0,
        "timing_s/save_checkpoint": 3.0,
        "timing_s/step": 4.0,
        "timing_per_token_ms/gen": 5.0,
        "timing_per_token_ms/update_actor": 1.0,
        "perf/time_per_step": 4.0,
        "perf/total_num_tokens": 1000.0,
        "perf/throughput": 125.0,
    }


def test_a_step_without_response_tokens_has_no_time_per_response_token():
    metrics = timing_metrics({"gen": 2.0, "ref": 1.0, "step": 4.0}, tokens=10, response_tokens=0, devices=1)
    assert "timing_per_token_ms/gen" not in metrics and metrics["timing_per_token_ms/ref"] == 100.0


def answers(*accuracies, predictions=None):
    """The answers to one prompt; what was read in them, or nothing."""
    told = predictions if predictions is not None else [None] * len(accuracies)
    return [
        dataclasses.replace(sample("a", 2 * accuracy, accuracy), prediction=prediction)
        for accuracy, prediction in zip(accuracies, told, strict=True)
    ]


def test_several_answers_are_told_by_their_best_their_worst_and_their_spread():
    told = validation_metrics([*answers(1, 0, 0, 0), *answers(1, 1, 1, 1)], 4)
    assert told["val-core/a/acc/mean@4"] == 0.625 and told["val-core/a/reward/mean@4"] == 1.25
    # One right answer of four: two of them have it in half of the six cases.
    assert told["val-aux/a/acc/best@2/mean"] == pytest.approx((0.5 + 1) / 2)
    assert told["val-core/a/acc/best@4/mean"] == 1.0
    assert told["val-aux/a/acc/worst@2/mean"] == pytest.approx((0 + 1) / 2)
    assert told["val-aux/a/acc/worst@4/mean"] == 0.5
    assert told["val-aux/a/acc/std@4"] == pytest.approx((0.5 + 0) / 2)
    assert told["val-aux/a/finished/mean@4"] == 1.0 and told["val-aux/a/rows"] == 8.0
    assert not any("maj@" in name for name in told)


def test_the_best_and_the_worst_of_k_are_means_over_all_choices_of_k():
    values = np.random.default_rng(0).normal(size=(3, 5))
    told = validation_metrics([one for row in values for one in answers(*row)], 5)
    assert {name for name in told if "acc/best" in name} == {
        "val-aux/a/acc/best@2/mean",
        "val-aux/a/acc/best@4/mean",
        "val-core/a/acc/best@5/mean",
        "val-aux/all/acc/best@2/mean",
        "val-aux/all/acc/best@4/mean",
        "val-core/all/acc/best@5/mean",
    }
    for k in (2, 4, 5):
        chosen = [list(itertools.combinations(row, k)) for row in values]
        kind = "core" if k == 5 else "aux"
        best = np.mean([np.mean([max(few) for few in all_]) for all_ in chosen])
        worst = np.mean([np.mean([min(few) for few in all_]) for all_ in chosen])
        assert told[f"val-{kind}/a/acc/best@{k}/mean"] == pytest.approx(best)
        assert told[f"val-aux/a/acc/worst@{k}/mean"] == pytest.approx(worst)


def test_the_majority_is_the_first_answer_that_most_agree_on_and_needs_all_to_be_read():
    first = answers(0, 1, 1, predictions=["7", "8", "8"])
    tied = answers(0, 1, 0, predictions=["3", "4", "5"])
    told = validation_metrics([*first, *tied], 3)
    assert told["val-core/a/acc/maj@3/mean"] == 0.5 and told["val-core/a/reward/maj@3/mean"] == 1.0
    unread = answers(0, 1, 1, predictions=["7", None, "8"])
    assert not any("maj@" in name for name in validation_metrics([*first, *unread], 3))
