import errno
import json
import os
import re
from pathlib import Path

import pytest

from jaxflow.tracking.timeline import Timeline, gantt, wall_seconds
from jaxflow.types import Span

START = 1_700_000_000.25

# Two pools: "main" generates (with a transition inside), scores and updates; "scoring" works beside it.
STEP = [
    Span("main", "actor", "gen", START, 4.0, 800, 640),
    Span("main", "actor", "transition", START + 0.5, 0.25, 3_000_000, 0),
    Span("scoring", "critic", "values", START + 4.0, 2.0, 900, 640),
    Span("main", "reference", "ref", START + 4.0, 3.0, 900, 640),
    Span("main", "actor", "update_actor", START + 7.0, 1.0, 900, 640),
]


def fail(message):
    raise AssertionError(message)


def later(spans, seconds):
    return [Span(s.pool, s.role, s.name, s.started + seconds, s.seconds, s.bytes, s.tokens) for s in spans]


def written(path, steps=10, starts=1):
    """The events of a file that `starts` processes wrote one step each to, one after the other."""
    for start in range(starts):
        timeline = Timeline(path, steps, fail)
        timeline.write(start + 1, later(STEP, 10.0 * start))
        timeline.close()
    return json.loads(path.read_bytes())


def spans_of(events):
    return [event for event in events if event["ph"] == "X"]


def row_names(events):
    return {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}


def crossing(events):
    """Pairs of events of one row that neither nest nor follow one another: viewers drop one of them."""
    stretches = [(e["tid"], e["ts"], e["ts"] + e["dur"]) for e in spans_of(events)]
    return [(a, b) for a in stretches for b in stretches if a[0] == b[0] and a[1] < b[1] < a[2] < b[2]]


def test_a_call_is_an_event_in_microseconds_with_what_it_moved(tmp_path):
    events = written(tmp_path / "timeline.json")
    generate = next(event for event in spans_of(events) if event["cat"] == "gen")
    assert generate["ts"] == 1_700_000_000_250_000 and generate["dur"] == 4_000_000
    assert generate["name"] == "generate"
    assert generate["args"] == {"role": "actor", "step": 1, "bytes": 800, "tokens": 640}


def test_a_transition_lies_inside_its_call_after_it_in_the_file_and_tells_its_speed(tmp_path):
    first, second = [e for e in spans_of(written(tmp_path / "t.json")) if e["args"].get("role") == "actor"][
        :2
    ]
    assert (first["name"], second["name"]) == ("generate", "transition")
    assert first["tid"] == second["tid"] and first["ts"] < second["ts"]
    assert second["ts"] + second["dur"] < first["ts"] + first["dur"]
    assert second["args"]["MB/s"] == 12.0


def test_every_pool_and_the_steps_have_a_named_row_of_their_own(tmp_path):
    events = written(tmp_path / "timeline.json", starts=2)
    names = row_names(events)
    assert sorted(names.values()) == ["main", "scoring", "steps"]
    assert {names[e["tid"]] for e in spans_of(events) if e["cat"] == "values"} == {"scoring"}
    steps = [e for e in spans_of(events) if names[e["tid"]] == "steps"]
    assert [(e["name"], e["ts"] - 1_700_000_000_250_000, e["dur"]) for e in steps] == [
        ("step 1", 0, 8_000_000),
        ("step 2", 10_000_000, 8_000_000),
    ]


def test_a_pool_that_appears_late_gets_a_row_that_no_other_has(tmp_path):
    timeline = Timeline(tmp_path / "t.json", 10, fail)
    timeline.write(1, STEP[:2])
    timeline.write(2, later(STEP, 10.0))
    timeline.close()
    metadata = [e for e in json.loads((tmp_path / "t.json").read_bytes()) if e["name"] == "thread_name"]
    assert (
        len({e["tid"] for e in metadata}) == len({e["args"]["name"] for e in metadata}) == 3 == len(metadata)
    )


def test_a_run_that_is_killed_leaves_whole_events_that_lack_only_the_bracket(tmp_path):
    path = tmp_path / "timeline.json"
    Timeline(path, 10, fail).write(1, STEP)  # never closed
    assert len(spans_of(json.loads(path.read_bytes() + b"]"))) == len(STEP) + 1


def test_a_file_cut_anywhere_is_continued_with_all_that_was_whole(tmp_path):
    events = written(tmp_path / "whole.json")
    whole, path = (tmp_path / "whole.json").read_bytes(), tmp_path / "cut.json"
    for kept in range(0, len(whole), 23):
        path.write_bytes(whole[:kept])
        timeline = Timeline(path, 10, fail)
        timeline.write(2, later(STEP, 10.0))
        timeline.close()
        continued = json.loads(path.read_bytes())
        survived = [event for event in events if json.dumps(event).encode() in whole[:kept]]
        assert continued[: len(survived)] == survived
        assert len([e for e in spans_of(continued) if e["args"]["step"] == 2]) == len(STEP) + 1
        names = row_names(continued)
        assert all(names[e["tid"]] == "scoring" for e in spans_of(continued) if e["cat"] == "values")
    assert sorted(os.listdir(tmp_path)) == ["cut.json", "whole.json"]


def test_a_closed_file_is_continued_by_the_next_start_and_by_a_late_write(tmp_path):
    path = tmp_path / "timeline.json"
    assert [e["args"]["step"] for e in spans_of(written(path, starts=3)) if e["cat"] == "step"] == [1, 2, 3]
    timeline = Timeline(path, 10, fail)
    for step in (4, 5):
        timeline.write(step, later(STEP, 10.0 * step))
        timeline.close()
        timeline.close()
    assert len(spans_of(json.loads(path.read_bytes()))) == 5 * (len(STEP) + 1)


def test_only_the_first_steps_of_a_start_are_written(tmp_path):
    timeline = Timeline(tmp_path / "timeline.json", 2, fail)
    for step in range(7, 12):
        timeline.write(step, later(STEP, 10.0 * step))
    timeline.close()
    events = spans_of(json.loads((tmp_path / "timeline.json").read_bytes()))
    assert {event["args"]["step"] for event in events} == {7, 8}


def test_no_steps_make_no_file(tmp_path):
    timeline = Timeline(tmp_path / "timeline.json", 0, fail)
    timeline.write(1, STEP)
    timeline.close()
    assert os.listdir(tmp_path) == []


def test_calls_that_cross_because_processes_part_late_follow_one_another(tmp_path):
    spans = [
        Span("main", "actor", "gen", START, 5.0, 0, 0),
        Span("main", "actor", "transition", START + 4.0, 0.5, 0, 0),
        Span("main", "reference", "ref", START + 4.25, 1.0, 0, 0),
        Span("main", "reference", "transition", START + 4.5, 0.625, 0, 0),
    ]
    timeline = Timeline(tmp_path / "t.json", 1, fail)
    timeline.write(1, spans)
    timeline.close()
    events = spans_of(json.loads((tmp_path / "t.json").read_bytes()))
    assert crossing(events) == []
    reference = next(event for event in events if event["cat"] == "ref")
    assert (reference["ts"], reference["dur"]) == (1_700_000_005_250_000, 250_000)


def test_a_transition_that_begins_its_call_lies_inside_it_whatever_the_order_given(tmp_path):
    call = Span("main", "actor", "gen", START, 4.0, 0, 0)
    spans = [Span("main", "actor", "transition", START, 1.0, 0, 0), call]
    timeline = Timeline(tmp_path / "t.json", 1, fail)
    timeline.write(1, spans)
    timeline.close()
    names = [event["name"] for event in spans_of(json.loads((tmp_path / "t.json").read_bytes()))]
    assert names == ["step 1", "generate", "transition"]
    assert gantt(spans, 40)[-1].endswith("overlap 1.00")


def test_a_full_disk_is_told_once_and_leaves_no_part_of_a_step(tmp_path, monkeypatch):
    path, warnings = tmp_path / "timeline.json", []
    timeline = Timeline(path, 10, warnings.append)
    timeline.write(1, STEP)
    monkeypatch.setattr(Path, "open", full_after(40))
    timeline.write(2, later([*STEP, Span("third", "cost", "cost", START, 1.0, 0, 0)], 10.0))
    timeline.write(3, later(STEP, 20.0))
    monkeypatch.undo()
    timeline.write(4, later([*STEP, Span("third", "cost", "cost", START, 1.0, 0, 0)], 30.0))
    timeline.close()
    events = json.loads(path.read_bytes())
    assert {event["args"]["step"] for event in spans_of(events)} == {1, 4}
    assert sorted(row_names(events).values()) == ["main", "scoring", "steps", "third"]
    assert timeline.failures == 2 and len(warnings) == 1 and "timeline.json" in warnings[0]


def test_a_place_that_cannot_be_written_does_not_stop_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    warnings = []
    timeline = Timeline(tmp_path / "file" / "timeline.json", 10, warnings.append)
    timeline.write(1, STEP)
    timeline.write(2, STEP)
    timeline.close()
    assert timeline.failures == 2 and len(warnings) == 1


def full_after(count):
    """Replaces Path.open: writes take `count` bytes, then the disk is full."""
    real = Path.open

    def opened(path, mode, buffering):
        file = real(path, mode, buffering=buffering)
        return Full(file, count)

    return opened


class Full:
    def __init__(self, file, left):
        self._file, self._left = file, left
        self.tell, self.truncate = file.tell, file.truncate

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        if self._left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._file.write(data[: self._left])
        self._left -= taken
        return taken


def drawing(lines):
    """The cells of each pool's line."""
    return {m[1]: m[2] for m in (re.match(r"  (\S+) +\d+% \|(.*)\|$", line) for line in lines) if m}


def test_a_step_of_two_pools_is_drawn_on_one_time_axis_and_added_up():
    assert gantt(STEP, 32) == [
        "  main    100% |ggtgggggggggggggssssssssssssuuuu|",
        "  scoring  25% |................cccccccc........|",
        "               0                            8 s",
        "  g  generate                    4 s",
        "  t  transition               0.25 s  (inside calls)",
        "  s  score with reference        3 s",
        "  c  score with critic           2 s",
        "  u  update actor                1 s",
        "  calls add up to 10 s in 8 s of wall time: overlap 1.25",
    ]


def test_what_runs_at_the_same_time_stands_in_the_same_columns():
    spans = [
        Span("a", "x", "before", START, 3.0, 0, 0),
        Span("a", "x", "together", START + 3.0, 5.0, 0, 0),
        Span("b", "y", "together", START + 3.0, 5.0, 0, 0),
        Span("b", "y", "later", START + 8.0, 2.0, 0, 0),
    ]
    rows = drawing(gantt(spans, 40))
    assert rows == {"a": "b" * 12 + "t" * 20 + "." * 8, "b": "." * 12 + "t" * 20 + "l" * 8}


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("columns", [10, 40, 100])
def test_a_span_of_a_hundredth_of_the_step_is_visible_wherever_it_lies(place, columns):
    spans = [
        Span("p", "x", "long", START, 100.0, 0, 0),
        Span("p", "x", "short", START + 100.0 * place, 1.0, 0, 0),
    ]
    row = drawing(gantt(spans, columns))["p"]
    assert row.count("s") == 1 and row.count("l") == columns - 1
    assert abs(row.index("s") - place * columns) <= 1


def test_spans_that_share_a_column_all_show_and_keep_the_long_one_beside_them():
    tiny = [Span("p", "x", f"{name}iny", START + 50.0 + i / 8, 0.125, 0, 0) for i, name in enumerate("abcd")]
    spans = [
        Span("p", "x", "left", START, 50.0, 0, 0),
        *tiny,
        Span("p", "x", "right", START + 50.5, 49.5, 0, 0),
    ]
    row = drawing(gantt(spans, 20))["p"]
    assert set(row) == set("abcdlr") and all(row.count(letter) == 1 for letter in "abcd")


def test_more_spans_than_columns_are_drawn_without_a_fault():
    spans = [Span("p", "x", f"stage {i}", START + i, 1.0, 0, 0) for i in range(100)]
    lines = gantt(spans, 5)
    assert len(drawing(lines)["p"]) == 5 and lines[-1].endswith("overlap 1.00")


def test_stages_have_letters_of_their_own_while_there_are_letters():
    spans = [Span("p", "x", f"stage{i}", START + i, 1.0, 0, 0) for i in range(62)]
    letters = [line.split()[0] for line in gantt(spans, 62)[2:-1]]
    assert len(set(letters)) == 62 and "#" not in letters


@pytest.mark.parametrize("seconds", [0.0, 1e-7])
def test_a_step_too_short_for_the_clock_is_drawn_without_a_fault(seconds):
    assert drawing(gantt([Span("p", "x", "gen", START, seconds, 0, 0)], 8))["p"].count("g") >= 1


def test_no_spans_draw_nothing_and_take_no_time():
    assert gantt([], 40) == [] and wall_seconds([]) == 0.0


def test_wall_time_goes_from_the_first_start_to_the_last_end():
    assert wall_seconds(STEP[::-1]) == 8.0
