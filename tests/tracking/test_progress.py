import pytest

from jaxflow.tracking.progress import Progress, headline, seconds_to_go

METRICS = {"critic/score/mean": 0.25, "actor/grad_norm": 1.5, "actor/entropy": 3.0}


def test_time_to_go_is_the_median_step_times_the_steps_left():
    assert seconds_to_go([60.0, 2.0, 4.0], 10) == 40.0
    assert seconds_to_go([2.0, 4.0], 3) == 9.0
    assert seconds_to_go([2.0], 0) == 0.0


def test_nothing_is_foretold_before_the_first_step():
    assert seconds_to_go([], 10) is None
    assert Progress(100).live_line(now=5.0) == "step 1/100"


def test_only_recent_steps_count_for_the_time_to_go():
    progress = Progress(1000)
    for step in range(1, 101):
        progress.finish_step(step, {}, 50.0)
    for step in range(101, 121):
        line = progress.finish_step(step, {}, 1.0)
    assert line == "step 120/1000 · 1.0 s · ETA 14 min 40 s"


def test_the_headline_shows_what_the_run_has_and_leaves_out_the_rest():
    assert headline(METRICS) == "score 0.25 · grad norm 1.5"
    assert headline({}) == ""


def test_the_live_line_tells_stage_step_time_left_and_figures():
    progress = Progress(100)
    progress.finish_step(2, METRICS, 3.0)
    progress.enter("update_actor", now=10.0)
    assert progress.live_line(now=22.0) == (
        "update actor 12 s · step 3/100 · ETA 4 min 54 s · score 0.25 · grad norm 1.5"
    )


def test_a_resumed_run_counts_from_where_it_was():
    progress = Progress(100)
    progress.begin(40)
    assert progress.live_line(now=0.0) == "step 41/100"


def test_the_last_step_has_neither_a_time_to_go_nor_a_successor():
    progress = Progress(3)
    assert progress.finish_step(3, {}, 1.0) == "step 3/3 · 1.0 s"
    assert progress.live_line(now=0.0) == "step 3/3"


def test_a_heartbeat_comes_every_thirty_seconds_of_one_stage_and_not_between_stages():
    progress = Progress(100)
    progress.begin(2)
    assert progress.heartbeat(now=1000.0) is None
    progress.enter("gen", now=100.0)
    heard = {now: progress.heartbeat(float(now)) for now in range(100, 200)}
    assert {now: line for now, line in heard.items() if line is not None} == {
        130: "generate, 30 s; step 3/100",
        160: "generate, 1 min 00 s; step 3/100",
        190: "generate, 1 min 30 s; step 3/100",
    }
    progress.enter("reward", now=200.0)
    assert progress.heartbeat(now=229.9) is None
    progress.enter(None, now=230.0)
    assert progress.heartbeat(now=300.0) is None


@pytest.mark.parametrize("seconds", [[1.0] * 3, [3.0, 1.0, 2.0]])
def test_the_estimate_does_not_depend_on_the_order_of_steps(seconds):
    assert seconds_to_go(seconds, 7) == seconds_to_go(sorted(seconds), 7)
