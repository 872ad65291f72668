"""The batch algebra is the one computed by hand, and the banner holds the whole chain."""

import dataclasses

import pytest
from good_config import config, split_config

from jaxflow.batch_algebra import UpdatePlan, derive, describe
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.placement import MeshSizes, PoolPlan


def test_the_batch_algebra_is_the_one_computed_by_hand():
    derived = derive(config(critic__model__layers=1), 100)
    assert (derived.prompts_per_step, derived.sequences_per_step) == (96, 384)
    assert derived.longest_sequence_tokens == 32
    assert (derived.generation_rows, derived.generation_slots) == (96, 64)
    # Actor: 384 / 128 = 3 mini-batches × 2 passes, in 10 steps; 640 / 32 = 20 rows on each of 2 replicas.
    assert derived.actor == UpdatePlan(
        minibatch_sequences=128,
        minibatches=3,
        updates_per_step=6,
        total_updates=60,
        microbatches_if_longest=4,
        pipeline_bubble=0.0,
    )
    critic = derived.critic
    assert (critic.minibatches, critic.updates_per_step, critic.total_updates) == (4, 4, 40)
    assert derived.actor_model == DecoderConfig(vocabulary_size=100)
    assert derived.critic_model == DecoderConfig(vocabulary_size=100, layers=1)


def test_each_role_is_planned_on_the_mesh_of_its_own_pool():
    changes = {"critic__microbatch_tokens_per_device": 320, "reward__model__layers": 3}
    derived = derive(split_config(**changes), 100)
    assert derived.pools == {
        "main": PoolPlan(("actor", "reference"), 2, 4, MeshSizes(data=2, fsdp=1, tensor=2, micro=2)),
        "judges": PoolPlan(
            ("critic", "reward", "estimator"), 1, 3, MeshSizes(data=3, fsdp=1, tensor=1, micro=1)
        ),
    }
    # 96 rows of 32 tokens at 10 rows on each of 3 replicas; on the actor's 2 replicas it would be 5.
    assert derived.critic.microbatches_if_longest == 4
    assert derived.actor.microbatches_if_longest == 4
    assert derived.reward_model == DecoderConfig(vocabulary_size=100, layers=3)


def test_stages_idle_as_long_as_their_micro_batches_say():
    changed = config(cluster__pools__main__mesh__data=1, cluster__pools__main__mesh__pipe=2)
    derived = derive(changed, 100)
    # 128 rows on one replica: six times 20 rows in 7 parts, one of padding, 8 ticks each; 8 rows in 8 parts, 9 ticks.
    assert derived.actor.pipeline_bubble == pytest.approx(1 - 128 / (6 * 3 * 8 + 8 / 8 * 9))
    assert "pipeline stages idle 16.3%" in describe(changed, derived)


def test_an_algorithm_without_a_critic_has_no_plan_for_one():
    derived = derive(config(cluster__pools__main__roles=["actor", "reward"]), 100)
    assert derived.critic is None
    assert "critic" not in describe(config(cluster__pools__main__roles=["actor", "reward"]), derived)


def test_of_every_part_of_a_step_so_many_rows_run_at_once_as_fit():
    # 96 rows of each of 4 replicas in 1, 2 and 3 parts, 64 of them at once at most.
    assert [derive(config(rollout__parts=parts), 100).generation_slots for parts in (1, 2, 3)] == [64, 48, 32]


def test_a_vocabulary_that_is_given_stays():
    assert derive(config(actor__model__vocabulary_size=128), 100).actor_model.vocabulary_size == 128


def test_the_description_holds_the_whole_chain():
    text = describe(config(), derive(config(), 100))
    for part in (
        "devices     8 (cpu), launcher ray",
        "96 prompts × 4 samples = 384 sequences",
        "384 sequences → 3 mini-batches of 128 × 2 epochs = 6 updates",
        "at most 640 padded tokens per device: 4 per mini-batch",
        "10 steps → 60 actor updates, 40 critic updates",
    ):
        assert part in text


def test_the_description_places_every_role_once():
    changed = split_config(reward__kind="model", warm_start__reward_steps=1)
    derived = derive(changed, 100)
    lines = describe(changed, derived).split("\n")
    assert lines[0] == "devices     11 (cpu), launcher ray"
    for role in ("actor", "reference", "critic", "reward"):
        (line,) = [line for line in lines if line.startswith(f"  {role} ") and "weights" in line]
        assert "parameters → per device" in line
    assert "  estimator   no weights" in lines
    function = dataclasses.replace(changed, reward=split_config().reward)
    assert "  reward      no weights" in describe(function, derived).split("\n")
