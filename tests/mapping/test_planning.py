"""A plan is what runs, fits or says what would, and its timeline is the schedule that its seconds give."""

import dataclasses
import json

import pytest
from good_config import ROLES, config, split_config

from jaxflow import batch_algebra
from jaxflow.checks import check
from jaxflow.mapping.asked import loads_of, parallelism
from jaxflow.mapping.auto import chosen, mappings_of
from jaxflow.mapping.mends import mends
from jaxflow.mapping.plan import fits, make_plan
from jaxflow.mapping.planning import plan_config
from jaxflow.mapping.report import describe_plan, plan_json
from jaxflow.types import UserError

VOCABULARY = 100
BIG = {
    "cluster__mapping": "auto",
    "cluster__platform": "gpu",
    "cluster__devices__kind": "l40s",
    "cluster__devices__hosts": 2,
    "cluster__devices__devices_per_host": 4,
    "actor__model__width": 2048,
    "actor__model__layers": 16,
    "actor__model__heads": 16,
    "actor__model__kv_heads": 16,
    "actor__model__head_width": 128,
    "actor__model__mlp_width": 8192,
    "actor__model__vocabulary_size": 32000,
    "data__max_prompt_tokens": 512,
    "rollout__max_response_tokens": 512,
    "actor__microbatch_tokens_per_device": 8192,
    "critic__microbatch_tokens_per_device": 8192,
}


FASTER = {
    "cluster__more_devices__fast__kind": "h100",
    "cluster__more_devices__fast__hosts": 1,
    "cluster__more_devices__fast__devices_per_host": 4,
}
MIXTURE = {
    "actor__model__mlp_width": 2048,
    "actor__model__experts": 8,
    "actor__model__experts_per_token": 2,
}


STAGED = {
    "cluster__devices__kind": "rtx-4090",
    "cluster__devices__hosts": 8,
    "cluster__devices__devices_per_host": 1,
    "actor__model__layers": 32,
}


@pytest.mark.parametrize(
    "devices",
    [
        {},
        {"cluster__devices__hosts": 1},
        {"cluster__devices__devices_per_host": 3},
        {"rollout__parts": 4},
        FASTER,
        MIXTURE,
        STAGED,
    ],
)
def test_what_the_search_chose_passes_all_checks_and_takes_its_seconds(devices):
    asked = config(**{**BIG, **devices})
    best, *_ = mappings_of(asked, VOCABULARY, ROLES)
    resolved = chosen(asked, VOCABULARY, ROLES)
    check(resolved, VOCABULARY, None)
    derived = batch_algebra.derive(resolved, VOCABULARY)
    assert derived.pools.keys() == resolved.cluster.pools.keys()
    plan = make_plan(resolved, VOCABULARY, ROLES)
    assert not plan.excess
    assert plan.step_seconds == pytest.approx(best.seconds, rel=1e-9)
    assert {role for pool in plan.pools for role in pool.roles} == set(ROLES)
    assert chosen(asked, VOCABULARY, ROLES) == resolved
    layouts = {parallelism(pool.mesh) for pool in resolved.cluster.pools.values()}
    assert layouts == {layout for placed in best.sets for layout in placed.option.layouts}
    assert devices is not STAGED or {layout.generation_pipe for layout in layouts} == {4}


def test_a_plan_counts_what_the_placement_counts():
    asked = split_config()
    for pool in make_plan(asked, VOCABULARY, ROLES).pools:
        held = batch_algebra.derive(asked, VOCABULARY).pools[pool.name]
        assert (pool.hosts, pool.devices_per_host, pool.roles) == (
            held.hosts,
            held.devices_per_host,
            held.roles,
        )
    plan = plan_config(asked, VOCABULARY, ROLES)
    lines = describe_plan(plan.plan, plan.runners_up, plan.mends)
    assert sum(line.startswith("pool ") for line in lines) == 2
    assert json.loads(json.dumps(plan_json(plan.plan, plan.runners_up, plan.mends)))["fits"] is True


def test_what_does_not_fit_is_said_with_changes_that_do():
    tight = config(
        **{**BIG, "cluster__mapping": "pools", "cluster__devices__kind": "rtx-4090"},
        cluster__pools__main__mesh__data=8,
        cluster__pools__main__mesh__tensor=1,
        cluster__pools__main__mesh__generation_tensor=1,
    )
    planned = plan_config(tight, VOCABULARY, ROLES)
    (excess,) = planned.plan.excess.values()
    worst = planned.plan.pools[0].worst
    assert excess == pytest.approx(worst.total - 0.9 * 24e9)
    assert len(planned.mends) >= 2
    assert all(fits(mend.config, VOCABULARY, ROLES) for mend in planned.mends)
    text = "\n".join(describe_plan(planned.plan, planned.runners_up, planned.mends))
    assert "DOES NOT FIT: pool main lacks" in text
    assert all(mend.change in text for mend in planned.mends)


def test_the_search_that_finds_nothing_names_the_hosts_that_would_do():
    one = {"cluster__devices__hosts": 1, "cluster__devices__devices_per_host": 1}
    small = config(**{**BIG, **one, "cluster__devices__kind": "tpu-v5e"})
    with pytest.raises(UserError, match="no mapping of actor"):
        chosen(small, VOCABULARY, ROLES)
    planned = plan_config(small, VOCABULARY, ROLES)
    assert planned.plan.excess
    hosts = [mend for mend in planned.mends if "cluster.devices.hosts" in mend.change]
    assert len(hosts) == 1
    assert mappings_of(hosts[0].config, VOCABULARY, ROLES)
    half = dataclasses.replace(
        hosts[0].config.cluster.devices, hosts=hosts[0].config.cluster.devices.hosts // 2
    )
    fewer = dataclasses.replace(small, cluster=dataclasses.replace(small.cluster, devices=half))
    assert not mappings_of(fewer, VOCABULARY, ROLES)


def test_devices_that_nothing_divides_over_are_a_reasoned_refusal_or_idle():
    primes = config(**{**BIG, "cluster__devices__hosts": 1, "cluster__devices__devices_per_host": 7})
    best, *_ = mappings_of(primes, VOCABULARY, ROLES)
    used = sum(placed.option.devices for placed in best.sets)
    planned = plan_config(primes, VOCABULARY, ROLES)
    assert planned.plan.idle_devices == 7 - used
    spare = dataclasses.replace(planned.plan, idle_devices=3)
    assert any(line.startswith("idle        3 devices") for line in describe_plan(spare, (), ()))
    # Three rows are no multiple of anything but one replica, whose heads no 7 devices share.
    odd = config(
        **{**BIG, "actor__model__heads": 5, "actor__model__kv_heads": 5, "cluster__devices__hosts": 1}
    )
    planned = plan_config(odd, VOCABULARY, ROLES)
    assert planned.plan.pools


def test_each_pool_is_bound_by_the_memory_of_its_own_kind():
    asked = config(**{**BIG, **FASTER, "cluster__devices__kind": "rtx-4090"})
    planned = plan_config(asked, VOCABULARY, ROLES)
    limits = {"rtx-4090": 24e9, "h100": 80e9}
    kinds = {pool.device: pool for pool in planned.plan.pools}
    assert planned.config.cluster.more_devices == asked.cluster.more_devices
    for name, pool in planned.config.cluster.pools.items():
        held = next(one for one in planned.plan.pools if one.name == name)
        assert held.device == (pool.device or "rtx-4090")
        assert held.worst.total <= held.room_bytes == 0.9 * limits[held.device]
    lines = describe_plan(planned.plan, planned.runners_up, planned.mends)
    assert [line.split(",")[0].split(" × ")[1] for line in lines if line.startswith("devices ")] == list(
        kinds
    )
    assert any(kind in line for kind in kinds for line in lines if line.startswith("pool "))
    # Four fast devices beside eight small ones are worth more than the small ones alone.
    alone = plan_config(config(**{**BIG, "cluster__devices__kind": "rtx-4090"}), VOCABULARY, ROLES)
    assert planned.plan.step_seconds < alone.plan.step_seconds


def test_weights_for_a_generator_of_another_kind_take_the_slower_network():
    def switch(kind: str) -> float:
        apart = split_config(
            **{"cluster__devices__kind": "h100", "actor__model__width": 1024},
            cluster__pools__rollouts__roles=["generator"],
            cluster__pools__rollouts__devices_per_host=4,
            cluster__pools__rollouts__mesh__data=4,
            cluster__pools__main__device=kind,
        )
        pools = make_plan(apart, VOCABULARY, [*ROLES, "generator"]).pools
        (moved,) = [call for pool in pools for call in pool.calls if call.stage == "transition"]
        return moved.seconds.links

    assert switch("rtx-4090") == pytest.approx(switch("h100") * 50 / 3, rel=1e-6)
    assert switch("b200") == switch("h100")


ENORMOUS = {
    "cluster__devices__hosts": 1,
    "actor__model__layers": 4096,
    "actor__model__width": 65536,
    "actor__model__mlp_width": 262144,
    "actor__model__heads": 512,
    "actor__model__kv_heads": 512,
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cluster__devices__hosts": 1, "cluster__devices__devices_per_host": 1}, "tokens/s"),
        ({"cluster__devices__hosts": 1, "cluster__devices__devices_per_host": 13}, "tokens/s"),
        ({"cluster__devices__hosts": 3, "cluster__devices__devices_per_host": 5}, "tokens/s"),
        (ENORMOUS, "nothing tried makes it fit"),
        ({"rollout__parts": 5}, "no layout of actor, critic, reference"),
        ({"actor__model__heads": 7, "actor__model__kv_heads": 7, "actor__model__width": 7}, "tokens/s"),
    ],
)
def test_whatever_is_asked_for_has_one_answer(changes, said):
    asked = config(**{**BIG, "cluster__devices__kind": "h100", **changes})
    try:
        planned = plan_config(asked, VOCABULARY, ROLES)
        text = "\n".join(describe_plan(planned.plan, planned.runners_up, planned.mends))
    except UserError as error:
        text = str(error)
    assert said in text


def test_devices_of_no_kind_are_asked_for():
    with pytest.raises(UserError, match=r"cluster\.devices\.kind is empty"):
        plan_config(config(cluster__platform="gpu"), VOCABULARY, ROLES)


def test_a_policy_that_takes_the_samplers_word_does_not_score():
    told, taken = (
        make_plan(config(algorithm__off_policy__bypass=bypass), VOCABULARY, ROLES) for bypass in (False, True)
    )
    stages_of = [{call.stage for pool in plan.pools for call in pool.calls} for plan in (told, taken)]
    assert stages_of[0] - stages_of[1] == {"old_log_prob"}


def test_what_is_compared_over_the_whole_vocabulary_is_planned():
    kl = {"algorithm__kl__reward_estimator": "full", "algorithm__kl__loss_estimator": "full"}
    asked = config(algorithm__kl__reward_coefficient=0.1, algorithm__kl__loss_coefficient=0.1, **kl)
    rewards, both = dataclasses.replace(asked.algorithm.kl, loss_coefficient=0.0), asked.algorithm.kl
    for rule, scoring, learning in ((rewards, 1, 0), (both, 1, 1)):
        algorithm = dataclasses.replace(asked.algorithm, kl=rule)
        loads = loads_of(dataclasses.replace(asked, algorithm=algorithm), VOCABULARY, ROLES)
        policy, *others = sorted(loads, key=lambda load: load.role != "actor")
        assert (policy.score_references, policy.learn_references, policy.stays) == (scoring, learning, True)
        assert all(load.references == 0 and not load.counts_choices for load in others)
    evened = config(actor__router_aux_loss_coefficient=0.01)
    assert [load.role for load in loads_of(evened, VOCABULARY, ROLES) if load.counts_choices] == ["actor"]


def test_mends_are_the_smallest_of_their_kind():
    tight = config(
        **{**BIG, "cluster__mapping": "pools", "cluster__devices__kind": "rtx-4090"},
        cluster__pools__main__mesh__data=1,
        cluster__pools__main__mesh__fsdp=4,
        cluster__pools__main__mesh__tensor=2,
        rollout__sequences_per_device=256,
    )
    found = {mend.change: mend.config for mend in mends(tight, VOCABULARY, ROLES)}
    (fewer,) = [mended for change, mended in found.items() if change.startswith("rollout.sequences")]
    rows = fewer.rollout.sequences_per_device
    assert fits(fewer, VOCABULARY, ROLES)
    twice = dataclasses.replace(fewer.rollout, sequences_per_device=2 * rows)
    assert not fits(dataclasses.replace(fewer, rollout=twice), VOCABULARY, ROLES)


def test_a_generator_keeps_no_weights_and_gets_them_from_afar():
    apart = split_config(
        cluster__pools__rollouts__roles=["generator"],
        cluster__pools__rollouts__devices_per_host=4,
        cluster__pools__rollouts__mesh__data=4,
    )
    together, alone = (
        make_plan(one, VOCABULARY, roles)
        for one, roles in ((split_config(), ROLES), (apart, [*ROLES, "generator"]))
    )
    pools = {pool.name: pool for pool in alone.pools}
    (model,) = pools["rollouts"].models
    assert model.rest.total == 0.0
    assert [call.stage for call in pools["rollouts"].calls] == ["transition", "gen"]
    assert {phase.phase for phase in pools["rollouts"].phases} == {"transition", "generation"}
    # The policy's own pool neither generates nor keeps what would.
    assert not any(call.step_part == 0 for call in pools["main"].calls)
    assert all(phase.held == 0.0 for phase in pools["main"].phases)
    assert any(phase.held > 0.0 for pool in together.pools for phase in pool.phases)
