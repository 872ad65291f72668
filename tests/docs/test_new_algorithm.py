"""The example of a new algorithm is short, right, runs, and is what its page shows."""

import dataclasses
import json
import math
import re
import types

import fakes
import numpy as np
import pytest
import runs
import tiny

from jaxflow.dataflow import load_dataflow
from jaxflow.types import Rollout, Scores, TokenLogProbs, UserError
from jaxflow.user_code import load_from_file
from jaxflow.workers.protocol import exposed_methods
from jaxflow.workers.row_values import join_rows, take_rows
from jaxflow.workers.transfer import DP_PROTO, Grid

EXAMPLE = runs.ROOT / "docs" / "examples" / "rloo.py"
PAGE = runs.ROOT / "docs" / "new_algorithm.md"
SAMPLES = 4
TWO_PROCESSES = Grid({"data": 2, "tensor": 2}, devices_per_process=2)

BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
(PROTOCOL_BLOCK,) = (block for block in BLOCKS if "TransferProtocol(" in block)


def leave_one_out(samples=SAMPLES):
    role = load_from_file(f"{EXAMPLE}:LeaveOneOut", "algorithm.name", "algorithm")
    config = types.SimpleNamespace(rollout=types.SimpleNamespace(samples_per_prompt=samples))
    return role(config, None, None)


def step_of(prompts):
    """A step's rollout, scores and log-probs, the samples of a prompt in a row."""
    generator = np.random.default_rng(0)
    rows = prompts * SAMPLES
    batch = tiny.experience(rows=rows)
    rollout = Rollout(
        tokens=batch.tokens,
        lengths=batch.lengths,
        response_mask=batch.response_mask,
        rollout_log_probs=batch.actor_log_probs,
        behaviour_log_probs=batch.actor_log_probs,
        finished=np.ones(rows, np.bool_),
        groups=np.repeat(np.arange(prompts, dtype=np.int32), SAMPLES),
        policy_updates=np.zeros(rows, np.int32),
        stopped=np.zeros(rows, np.bool_),
    )
    scores = generator.random(rows).astype(np.float32)
    given = Scores(scores=scores, accuracy=scores, failed=np.zeros(rows, np.bool_))
    return rollout, given, TokenLogProbs(batch.actor_log_probs, np.zeros_like(batch.actor_log_probs))


def spread(protocol, step):
    """Play `experience` as the processes of a pool would, each on the rows that the protocol gives it."""
    rows = len(step[0].lengths)
    given = protocol.distribute(TWO_PROCESSES, rows)
    collected = protocol.collect(TWO_PROCESSES, rows).shares
    assert given == collected  # so that a process's result has the rows that are asked of it, in their order
    pieces = []
    for ranges in given:
        own = ranges if ranges else (range(0),)
        arguments = [join_rows([take_rows(value, r.start, r.stop) for r in own]) for value in step]
        pieces.append(leave_one_out().experience(*arguments))
    order = np.concatenate([np.r_[r] for ranges in collected for r in ranges])
    return tiny.rows_of(join_rows(pieces), np.argsort(order))


def test_the_example_is_complete_in_under_60_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 60


def test_the_page_shows_the_example_as_it_is():
    example = EXAMPLE.read_text(encoding="utf-8")
    shown = [block for block in BLOCKS if block != PROTOCOL_BLOCK]
    assert len(shown) == 6
    assert [block for block in shown if block not in example] == []


def test_the_script_asks_its_cast_alone_and_waits_for_nothing():
    @dataclasses.dataclass(frozen=True)
    class FakeLeaveOneOut(fakes.FakeRole):
        def experience(self, rollout, scores, actor_log_probs):
            return self._call("experience", rollout, scores, actor_log_probs)

        def statistics(self, scores):
            return self._call("statistics", scores)

    dataflow = load_dataflow(f"{EXAMPLE}:RLOO")
    groups, log = fakes.fake_groups(("actor", "reward"))
    groups["leave_one_out"] = FakeLeaveOneOut("leave_one_out", log)
    returned = dataflow(groups, fakes.FakeFuture("prompts", log))
    assert [call.name for call in log] == [
        "actor.generate",
        "reward.score",
        "actor.log_probs",
        "leave_one_out.experience",
        "actor.update",
        "leave_one_out.statistics",
    ]
    assert [future.name for future in returned] == ["actor.update", "leave_one_out.statistics"]


def test_what_the_script_asks_of_the_role_is_exposed():
    assert set(exposed_methods(type(leave_one_out()))) == {"experience", "statistics"}


def test_a_response_is_judged_against_the_others_to_its_prompt():
    rollout, scores, log_probs = step_of(prompts=3)
    made = leave_one_out().experience(rollout, scores, log_probs)
    for row, score in enumerate(scores.scores):
        first = row // SAMPLES * SAMPLES
        others = [scores.scores[i] for i in range(first, first + SAMPLES) if i != row]
        expected = np.where(rollout.response_mask[row], score - np.mean(others, dtype=np.float64), 0.0)
        np.testing.assert_allclose(made.advantages[row], expected, rtol=1e-6, atol=1e-7)
    assert {leaf.dtype for leaf in (made.advantages, made.actor_log_probs, made.values)} == {
        np.dtype(np.float32)
    }
    assert made.actor_log_probs is log_probs.log_probs and made.tokens is rollout.tokens


def test_processes_with_whole_prompts_make_what_one_process_makes():
    step = step_of(prompts=4)
    tiny.assert_same_bits(spread(DP_PROTO, step), leave_one_out().experience(*step))


def test_a_prompt_cut_between_processes_is_refused():
    with pytest.raises(UserError, match="hosts to 1"):
        spread(DP_PROTO, step_of(prompts=3))


def test_one_sample_a_prompt_is_refused():
    rollout, scores, log_probs = step_of(prompts=1)
    with pytest.raises(UserError, match="samples_per_prompt > 1"):
        leave_one_out(samples=1).experience(rollout, scores, log_probs)


def test_the_page_s_own_protocol_is_short_and_serves_prompts_that_others_cut():
    assert len(PROTOCOL_BLOCK.splitlines()) <= 10
    names = {}
    exec(PROTOCOL_BLOCK, names)
    step = step_of(prompts=3)
    tiny.assert_same_bits(spread(names["FIRST_PROTO"], step), leave_one_out().experience(*step))


@pytest.mark.slow
def test_the_example_trains_as_its_page_says(tmp_path):
    small = {
        "run.total_steps": 2,
        "cluster.launcher": "inprocess",
        "data.prompts_per_step": 8,
        "data.validation_prompts": 8,
        "actor.minibatch_sequences": 8 * SAMPLES,
        "warm_start.steps": 2,
    }
    ended = runs.run_to_end(
        f"--config={EXAMPLE}",
        f"--workdir={tmp_path}",
        *(f"--config.{key}={value}" for key, value in small.items()),
    )
    assert ended.code == 0, ended.output + ended.errors
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "actor/pg_loss" in row]
    assert len(trained) == 2
    for row in trained:
        assert math.isfinite(row["actor/pg_loss"]) and 0.0 <= row["critic/score/mean"] <= 1.0
        assert "timing_s/adv" in row and "critic/vf_loss" not in row
