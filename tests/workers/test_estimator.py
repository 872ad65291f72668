"""The numeric role: refills that rearrange rows, two streams under one multiplier, and the state of both."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference
import tiny
from runs import config_of

from jaxflow.batch_algebra import derive
from jaxflow.config import pool
from jaxflow.types import Rollout, Scores, TokenLogProbs
from jaxflow.workers.calls import plan_call
from jaxflow.workers.model_free_roles import Estimator
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed_methods
from jaxflow.workers.transfer import Grid

GROUPS, SAMPLES = 4, 2
ROWS = GROUPS * SAMPLES
SAFE = ["actor", "critic", "cost_critic", "reference", "reward", "cost", "estimator"]


@functools.cache
def estimator(sizes=(1, 1, 1, 1), **changes):
    pools = {"main": pool(SAFE, devices_per_host=2, data=2)}
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    config = config_of(
        pools, **{"algorithm.name": "safe_rlhf", "rollout.samples_per_prompt": SAMPLES, **keys}
    )
    return Estimator(config, derive(config, 20), Place(tiny.mesh_of(sizes)))


def rollout(seed, length=32):
    batch = tiny.experience(rows=ROWS, length=length, seed=seed)
    return Rollout(
        tokens=batch.tokens,
        lengths=batch.lengths,
        response_mask=batch.response_mask,
        rollout_log_probs=batch.actor_log_probs,
        behaviour_log_probs=batch.actor_log_probs,
        finished=np.arange(ROWS) % 2 == 0,
        groups=np.repeat(np.arange(GROUPS, dtype=np.int32), SAMPLES),
        policy_updates=np.full(ROWS, seed, np.int32),
        stopped=np.zeros(ROWS, bool),
    )


def scores(values):
    values = np.array(values, np.float32)
    return Scores(values, values[::-1].copy(), np.zeros(len(values), bool))


HELD, MORE = rollout(1), rollout(2, length=48)
# Groups 0 and 2 teach nothing; of the others' groups 1 and 3 teach something.
HELD_SCORES, MORE_SCORES = scores([1, 1, 0, 1, 0, 0, 1, 0]), scores([0, 0, 1, 0, 1, 1, 0, 0.5])
SOURCE = [10, 11, 2, 3, 14, 15, 6, 7]


def test_a_refill_takes_whole_rows_of_the_other_rollout_and_keeps_the_groups_places():
    role = Estimator(*setting())
    assert role.uninformative_groups(HELD_SCORES) == 2
    refilled = role.refilled_rollout(HELD, MORE, HELD_SCORES, MORE_SCORES)
    told = role.refilled_scores(HELD_SCORES, MORE_SCORES)
    for row, source in enumerate(SOURCE):
        whose, index = (HELD, source) if source < ROWS else (MORE, source - ROWS)
        length = whose.lengths[index]
        assert refilled.lengths[row] == length
        np.testing.assert_array_equal(refilled.tokens[row, :length], whose.tokens[index, :length])
        np.testing.assert_array_equal(
            refilled.response_mask[row, :length], whose.response_mask[index, :length]
        )
        assert refilled.finished[row] == whose.finished[index]
        # A refill is as old as it is, not as the batch that it came into.
        assert refilled.policy_updates[row] == whose.policy_updates[index]
    np.testing.assert_array_equal(refilled.groups, HELD.groups)
    both = np.concatenate([HELD_SCORES.scores, MORE_SCORES.scores])
    np.testing.assert_array_equal(told.scores, both[SOURCE])
    assert role.uninformative_groups(told) == 0
    # The figures are of all that was drawn, once.
    _, _, (experience, _), _ = streams(role, HELD_SCORES)
    figures = [role.statistics(refilled, told, experience) for _ in range(2)]
    assert figures[0]["reward/sampled_score_mean"] == pytest.approx(both.mean())
    assert "reward/sampled_score_mean" not in figures[1]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_process_sees_all_rows_of_a_refill_and_gives_its_own_once(processes):
    grid = Grid({"data": 2, "fsdp": 2, "tensor": 2}, devices_per_process=8 // processes)
    for name in ("refilled_rollout", "refilled_scores"):
        plan = plan_call(exposed_methods(Estimator)[name], grid, range(ROWS), cuts=())
        assert all(share.given == (range(ROWS),) for share in plan.shares)
        given = sorted(row for share in plan.shares for piece in share.pieces for row in piece)
        assert given == list(range(ROWS))


def test_accuracy_may_be_what_must_differ():
    by_accuracy = estimator(algorithm__dynamic_sampling__metric="accuracy")
    apart = Scores(np.arange(8, dtype=np.float32), np.ones(8, np.float32), np.zeros(8, bool))
    assert by_accuracy.uninformative_groups(apart) == GROUPS
    assert estimator().uninformative_groups(apart) == 0


def streams(role, costs):
    generator = np.random.default_rng(0)
    on = HELD.response_mask

    def per_token(shift):
        return np.where(on, generator.normal(size=on.shape) + shift, 0).astype(np.float32)

    actor, ref = (TokenLogProbs(per_token(-2), np.zeros_like(on, np.float32)) for _ in range(2))
    values, cost_values = per_token(0), per_token(0)
    experience = role.experience(HELD, HELD_SCORES, actor, ref, values)
    cost_experience = role.cost_experience(HELD, costs, actor, ref, cost_values)
    return actor, ref, (experience, values), (cost_experience, cost_values)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), pytest.param((2, 2, 2, 2), marks=pytest.mark.slow)])
def test_two_streams_become_one_advantage_under_the_multiplier_of_these_costs(sizes):
    changes = {"algorithm__kl__reward_coefficient": 0.3, "algorithm__gae_lambda": 0.95}
    role = estimator(sizes, **changes)
    costs = scores([2, 0, 1, 3, 0, 0, 1, 1])
    actor, ref, (experience, values), (cost_experience, cost_values) = streams(role, costs)
    kl = np.where(HELD.response_mask, actor.log_probs - ref.log_probs, 0)
    raw = []
    for sign, ends, expected, estimates in (
        (1, HELD_SCORES, experience, values),
        (-1, costs, cost_experience, cost_values),
    ):
        rewards = reference.shape_rewards(ends.scores, kl, HELD.response_mask, sign * 0.3)
        advantages, returns = reference.gae(rewards, estimates, HELD.response_mask, 1.0, 0.95)
        width = expected.returns.shape[1]
        np.testing.assert_allclose(expected.returns, returns[:, :width], rtol=1e-4, atol=1e-4)
        raw.append(advantages[:, :width])
    multiplier = np.exp(0.1 * 1.0 * costs.scores.mean())
    combined = (raw[0] - multiplier * raw[1]) / (1 + multiplier)
    mask = experience.response_mask
    constrained = role.constrained(experience, cost_experience, costs)
    np.testing.assert_allclose(constrained.advantages, reference.whiten(combined, mask), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(constrained.returns, experience.returns)


def test_the_multiplier_moves_once_a_step_and_is_saved_with_its_window(tmp_path):
    role = Estimator(*setting())
    costs = scores([2, 0, 1, 3, 0, 0, 1, 1])
    _, _, (experience, _), (cost_experience, _) = streams(role, costs)
    first = role.constrained(experience, cost_experience, costs)
    # Asked again before the step is over, it says the same: nothing has moved yet.
    tiny.assert_same_bits(role.constrained(experience, cost_experience, costs), first)
    told = role.follow_costs(costs)
    assert told["constraint/multiplier"] == pytest.approx(np.exp(0.1), rel=1e-6)
    assert told["constraint/window_cost_mean"] == told["constraint/cost/mean"] == 1.0
    assert told["constraint/threshold"] == 0.0 and told["constraint/cost/over_threshold"] == 5 / 8
    role.save(str(tmp_path))
    again = Estimator(*setting())
    again.restore(str(tmp_path))
    later = scores([0] * 8)
    assert again.follow_costs(later) == role.follow_costs(later)
    assert again.follow_costs(later)["constraint/window_cost_mean"] < 1.0


def setting():
    pools = {"main": pool(SAFE, devices_per_host=2, data=2)}
    config = config_of(pools, **{"algorithm.name": "safe_rlhf", "rollout.samples_per_prompt": SAMPLES})
    return config, derive(config, 20), Place(tiny.ONE_DEVICE)


def test_statistics_count_groups_that_teach_nothing_and_leave_out_a_critic_that_is_none():
    role = estimator()
    _, _, (experience, _), _ = streams(role, HELD_SCORES)
    told = role.statistics(HELD, HELD_SCORES, experience)
    assert told["reward/uninformative_groups"] == 0.5
    assert "critic/values/mean" in told
    roles = ["actor", "reference", "reward", "estimator"]
    pools = {"main": pool(roles, devices_per_host=2, data=2)}
    config = config_of(pools, **{"algorithm.name": "grpo", "rollout.samples_per_prompt": SAMPLES})
    alone = Estimator(config, derive(config, 20), Place(tiny.ONE_DEVICE))
    told = alone.statistics(HELD, HELD_SCORES, dataclasses.replace(experience, values=0 * experience.values))
    assert not {name for name in told if name.startswith(("critic/values", "critic/vf"))}
    assert jax.tree.all(jax.tree.map(np.isfinite, told))
