"""Where the roles live decides no result: any placement, on any number of processes, trains the same policy."""

import json
import math

import pytest
from runs import STEPS, StopAfter, flags, rows, run_here, run_to_end

from jaxflow.config import pool

ONE = {"data": 2}
# Every way of placing actor, critic, reference and reward that the paper names, and one that it does not.
PLACEMENTS = {
    "split": {
        "policy": pool(["actor", "reference"], 1, 4, data=2, tensor=2),
        "judges": pool(["critic", "reward", "estimator"], 1, 2, **ONE),
    },
    "stand-alone": {
        "actor": pool(["actor"], 1, 2, data=2),
        "critic": pool(["critic", "estimator"], 1, 2, fsdp=2),
        "reference": pool(["reference"], 1, 1),
        "reward": pool(["reward"], 1, 1),
    },
    "estimator alone": {
        "models": pool(["actor", "critic", "reference"], 1, 4, fsdp=2, tensor=2, generation_tensor=2),
        "rest": pool(["reward"], 1, 1),
        "numbers": pool(["estimator"], 1, 2, **ONE),
    },
    "generator alone": {
        "models": pool(["actor", "critic", "reference", "reward", "estimator"], 1, 4, fsdp=2, tensor=2),
        "rollouts": pool(["generator"], 1, 2, tensor=2, generation_tensor=2),
    },
}
# The same with the pools' hosts as processes of their own.
SPLIT_PROCESSES = {
    "policy": pool(["actor", "reference"], 2, 2, data=2, tensor=2),
    "judges": pool(["critic", "reward", "estimator"], 1, 2, **ONE),
}
GENERATOR_OF_TWO = {
    "models": pool(["actor", "critic", "reference", "reward", "estimator"], 2, 1, tensor=2),
    "rollouts": pool(["generator"], 2, 1, tensor=2, generation_tensor=2),
}
MODEL = {"reward.kind": "model", "warm_start.reward_steps": 2}
# Sums in another order, through a few updates of Adam.
TOLERANCE = 2e-3
GENERATION = {f"perf/generation_{name}" for name in ("tokens_per_second", "slot_occupancy", "prefill_share")}


def differences(found, expected):
    """The metrics that are not the same within float32's reach, relative to their size."""
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    return {
        (step, name): (row[name], wanted[name])
        for step, (row, wanted) in enumerate(zip(found, expected, strict=True))
        for name in row
        if name != "transition/received_bytes_per_device"  # that is what a placement decides
        and not math.isclose(row[name], wanted[name], rel_tol=TOLERANCE, abs_tol=2e-5)
    }


@pytest.fixture(scope="module")
def colocated(tmp_path_factory):
    """All roles on one pool of one process."""
    workdir = tmp_path_factory.mktemp("colocated")
    assert run_here(workdir, **MODEL)[0] == 0
    return rows(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [("split", 2), ("stand-alone", 2), ("estimator alone", 1), ("generator alone", 2)],
)
def test_every_placement_gives_the_colocated_runs_metrics(colocated, tmp_path, name, parts):
    assert run_here(tmp_path, pools=PLACEMENTS[name], **MODEL, **{"rollout.parts": parts})[0] == 0
    assert differences(rows(tmp_path), colocated) == {}
    told = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert told.keys() >= GENERATION, "whichever pool generates"


@pytest.mark.slow
def test_what_waits_in_host_memory_changes_no_bit_stopped_and_resumed(colocated, tmp_path):
    waiting = {"cluster.pools.main.offload": ("actor", "critic", "reference", "reward")}
    assert run_here(tmp_path, StopAfter(6), **MODEL, **waiting)[0] == 143
    assert run_here(tmp_path, **MODEL, **waiting)[0] == 0
    moved = [{name for name in row if name.startswith("offload/")} for row in rows(tmp_path)]
    assert moved[1:] == [{"offload/bytes_per_device"}] * STEPS
    kept = [{name: row[name] for name in row if not name.startswith("offload/")} for row in rows(tmp_path)]
    assert kept == colocated


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """All roles on one pool of one process, from the command line."""
    workdir = tmp_path_factory.mktemp("commanded") / "run"
    ended = run_to_end(*flags(workdir, **MODEL, **{"cluster.launcher": "inprocess"}))
    assert ended.code == 0, ended.errors
    return rows(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pools", [SPLIT_PROCESSES, GENERATOR_OF_TWO], ids=["split", "weights from two processes to two"]
)
def test_processes_of_their_own_give_the_colocated_runs_metrics(commanded, tmp_path, pools):
    ended = run_to_end(*flags(tmp_path / "run", pools=pools, **MODEL))
    assert ended.code == 0, ended.errors
    assert differences(rows(tmp_path / "run"), commanded) == {}


@pytest.mark.slow
def test_bytes_through_the_controller_do_not_grow_with_the_responses(tmp_path):
    """Text, prompts, row ranges and statistics pass; what grows with the sequences goes from worker to worker."""
    passed = {}  # counted where calls are made, whoever carries them
    for longest in (8, 64):
        workdir = tmp_path / str(longest)
        changes = {
            "rollout.max_response_tokens": longest,
            "rollout.ignore_end_token": True,
            "run.total_steps": 2,
            "run.evaluate_before": False,
            "run.evaluate_after": False,
            "warm_start.steps": 0,
        }
        assert run_here(workdir, pools=PLACEMENTS["split"], **changes)[0] == 0
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert [row["response_length/mean"] for row in lines] == [longest] * 2
        passed[longest] = [row["perf/controller_bytes"] for row in lines]
    assert passed[8] == passed[64]
    # A step has 16 sequences of at most 16 tokens each: prompts, and some 100 bytes for each of its calls.
    assert max(passed[8]) < 64_000
