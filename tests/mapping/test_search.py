"""The search finds what trying everything finds, in bounded time, and the same thing twice."""

import dataclasses
import time

import pytest
from mapping.brute_force import best_seconds
from mapping.shapes import LLAMA_7B, LLAMA_70B, actor, critic, frozen, work

from jaxflow.mapping.colocated import room
from jaxflow.mapping.devices import DEVICES, DeviceGroup
from jaxflow.mapping.engine_profile import JAXFLOW, MEGATRON_VLLM
from jaxflow.mapping.layouts import Freedom
from jaxflow.mapping.memory import at_rest
from jaxflow.mapping.search import Problem, Search, hopeless, partitions, pool_sizes, search
from jaxflow.models.decoder_config import DecoderConfig

SMALL = DecoderConfig(
    vocabulary_size=32000, width=1024, layers=4, heads=8, kv_heads=4, head_width=128, mlp_width=4096
)
EVERYTHING = Freedom(pipe=True, fsdp=True, offload=False)
# So little that some layouts do not fit, others generate in rounds.
CARD = dataclasses.replace(DEVICES["l40s"], kind="card", memory_bytes=3.2e9)
FAST = dataclasses.replace(CARD, kind="fast", matmul_flops=2 * CARD.matmul_flops, memory_bytes=6e9)


def three(minibatch=16) -> tuple:
    return actor(SMALL, minibatch, 2), critic(SMALL, minibatch, 2), frozen("reference", SMALL)


def problem(engine, *groups, freedom=EVERYTHING, loads=None, parts=1) -> Problem:
    loads = three() if loads is None else loads
    return Problem(loads, dataclasses.replace(work(32, 512, 512), parts=parts), groups, engine, freedom)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("engine", [JAXFLOW, MEGATRON_VLLM])
@pytest.mark.parametrize(
    "groups",
    [
        (DeviceGroup(CARD, 1, 4),),
        (DeviceGroup(CARD, 1, 5),),
        (DeviceGroup(CARD, 1, 2), DeviceGroup(FAST, 1, 2)),
    ],
)
def test_the_fastest_mappings_are_those_of_brute_force(engine, groups, offload):
    freedom = Freedom(pipe=len(groups) == 1, fsdp=True, offload=offload)
    case = problem(engine, *groups, freedom=freedom)
    if len(groups) > 1:  # without pipelines the brute force must not try them either
        loads = tuple(
            dataclasses.replace(load, model=dataclasses.replace(load.model, decoder=_indivisible(load)))
            for load in case.loads
        )
        case = dataclasses.replace(case, loads=loads)
    expected = best_seconds(case)
    found = search(case, wanted=len(list(partitions(3))))
    assert len(expected) > 1
    # Brute force gives each pool exactly what it uses; the search lets devices idle, which is more devices, not less.
    assert [m.seconds for m in found] == pytest.approx(sorted(expected.values()), rel=1e-9)


def _indivisible(load):
    """Return a decoder with a prime number of layers, which no pipeline cuts."""
    return dataclasses.replace(load.model.decoder, layers=5)


def remax(decoder) -> tuple:
    """Return ReMax's models: two responses for each prompt, both judged; no critic."""
    policy = dataclasses.replace(actor(decoder, 16, 2), generations=2)
    return policy, frozen("reference", decoder), dataclasses.replace(frozen("reward", decoder), scores=2)


def safe_rlhf(decoder) -> tuple:
    """Return Safe-RLHF's models: policy, reference, reward and cost with a critic each."""
    learners = actor(decoder, 16, 2), critic(decoder, 16, 2)
    cost_critic = dataclasses.replace(learners[1], role="cost_critic", turn=3)
    return (*learners, cost_critic, *(frozen(role, decoder) for role in ("reference", "reward", "cost")))


def ppo(decoder) -> tuple:
    return *three(), frozen("reward", decoder)


def grpo(decoder) -> tuple:
    return actor(decoder, 16, 2), frozen("reference", decoder)


MIXTURE = dataclasses.replace(SMALL, mlp_width=1024, experts=4, experts_per_token=2)


@pytest.mark.parametrize(
    ("models", "decoder", "devices", "parts"),
    [
        (ppo, SMALL, 4, 1),
        (ppo, SMALL, 3, 2),
        (ppo, SMALL, 4, 4),
        (remax, SMALL, 6, 1),
        (remax, SMALL, 4, 2),
        (grpo, SMALL, 8, 1),
        (grpo, SMALL, 7, 4),
        (safe_rlhf, SMALL, 3, 1),
        (safe_rlhf, SMALL, 3, 2),
        (grpo, MIXTURE, 4, 1),
        (ppo, MIXTURE, 4, 2),
    ],
)
def test_every_algorithms_mapping_is_that_of_brute_force(models, decoder, devices, parts):
    roomy = dataclasses.replace(CARD, memory_bytes=9e9)
    loads = models(decoder)
    case = problem(JAXFLOW, DeviceGroup(roomy, 1, devices), loads=loads, parts=parts)
    expected = best_seconds(case)
    assert len(expected) > 1
    found = search(case, wanted=len(list(partitions(len(loads)))))
    assert [m.seconds for m in found] == pytest.approx(sorted(expected.values()), rel=1e-9)


def test_generation_keeps_stages_where_a_host_cannot_hold_all_layers():
    deep = dataclasses.replace(SMALL, layers=8, vocabulary_size=1024)
    small = DeviceGroup(dataclasses.replace(CARD, memory_bytes=1.0e9), 4, 2)
    loads = actor(deep, 16, 2), frozen("reference", deep)
    case = problem(JAXFLOW, small, loads=loads)
    found = search(case, wanted=2)
    assert [m.seconds for m in found] == pytest.approx(sorted(best_seconds(case).values()), rel=1e-9)
    (generating,) = [placed.option for placed in found[0].sets if placed.option.rows > 0]
    assert generating.layouts[0].generation_pipe > 1
    gathered = dataclasses.replace(case, engine=dataclasses.replace(JAXFLOW, generation_pipes=False))
    slower = search(gathered, wanted=1)
    assert slower == () or slower[0].seconds > found[0].seconds


@pytest.mark.parametrize(("roles", "count"), [(1, 1), (3, 5), (4, 15), (5, 52), (6, 203)])
def test_partitions_are_bells_number_and_all_different(roles, count):
    found = list(partitions(roles))
    assert len(found) == count == len({frozenset(map(frozenset, one)) for one in found})
    assert all(sorted(i for block in one for i in block) == list(range(roles)) for one in found)


def six(decoder) -> tuple:
    """Return Safe-RLHF's models: policy, reference, reward and cost with a critic each."""
    cost_critic = dataclasses.replace(critic(decoder), role="cost_critic", turn=3)
    return (
        actor(decoder),
        critic(decoder),
        cost_critic,
        frozen("reference", decoder),
        frozen("reward", decoder),
        frozen("cost", decoder),
    )


@pytest.mark.parametrize("hosts", [1, 3, 5])
def test_pools_share_the_devices_out_and_fit(hosts):
    case = Problem(six(LLAMA_7B), work(), (DeviceGroup(DEVICES["h100"], hosts, 8),), JAXFLOW, EVERYTHING)
    found = search(case, wanted=1)
    (best,) = found
    assert sum(placed.allocated for placed in best.sets) <= hosts * 8
    assert sorted(role for placed in best.sets for role in placed.roles) == sorted(x.role for x in case.loads)
    loads = {load.role: load for load in case.loads}
    for placed in best.sets:
        assert placed.option.devices <= placed.allocated
        rest = sum(
            at_rest(loads[role], layout, case.setting(0)).total
            for role, layout in zip(placed.roles, placed.option.layouts, strict=True)
        )
        assert rest < room(case.setting(0))
        assert (
            len(
                {
                    dataclasses.replace(x, generation_tensor=1, generation_pipe=1)
                    for x in placed.option.layouts
                }
            )
            == 1
        )
    again = search(dataclasses.replace(case, loads=six(LLAMA_7B)), wanted=1)
    assert again == found


def test_offload_makes_room_and_costs_time():
    tight = DeviceGroup(dataclasses.replace(CARD, memory_bytes=6e9), 1, 1)
    without = search(problem(JAXFLOW, tight))
    with_it = search(problem(JAXFLOW, tight, freedom=dataclasses.replace(EVERYTHING, offload=True)))
    assert without == ()
    assert with_it[0].sets[0].option.offload
    roomy = DeviceGroup(dataclasses.replace(CARD, memory_bytes=50e9), 1, 1)
    best = search(problem(JAXFLOW, roomy, freedom=dataclasses.replace(EVERYTHING, offload=True)))[0]
    assert not best.sets[0].option.offload


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("engine", [JAXFLOW, MEGATRON_VLLM])
def test_what_is_called_hopeless_fits_nowhere(engine, offload):
    freedom = dataclasses.replace(EVERYTHING, offload=offload)
    told = {}
    for memory_bytes in (0.4e9, 0.8e9, 1.6e9, 3.2e9, 6.4e9):
        card = dataclasses.replace(CARD, memory_bytes=memory_bytes)
        case = problem(engine, DeviceGroup(card, 1, 4), freedom=freedom)
        told[memory_bytes] = hopeless(case)
        assert not (told[memory_bytes] and Search(case, 1).run())
    assert told[0.4e9] and not told[6.4e9]


@pytest.mark.parametrize("devices", [1, 2, 7, 13])
def test_any_number_of_devices_has_an_answer_in_bounded_time(devices):
    started = time.process_time()
    found = search(problem(JAXFLOW, DeviceGroup(FAST, 1, devices)))
    assert time.process_time() - started < 20
    assert all(sum(placed.allocated for placed in mapping.sets) <= devices for mapping in found)
    assert (devices == 1) == (found == ())  # one such card is too small for three models


def test_pools_of_several_hosts_are_whole_hosts_or_pack():
    assert pool_sizes(DeviceGroup(CARD, 1, 6)) == (1, 2, 3, 4, 5, 6)
    assert pool_sizes(DeviceGroup(CARD, 3, 8)) == (1, 2, 4, 8, 16, 24)
    assert pool_sizes(DeviceGroup(CARD, 5, 8)) == (8, 16, 24, 32, 40)


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "limit"), [(16, 5.0), (128, 60.0)])
def test_large_clusters_are_searched_in_seconds(hosts, limit):
    loads = (actor(LLAMA_70B), critic(LLAMA_70B), frozen("reference", LLAMA_70B), frozen("reward", LLAMA_70B))
    case = Problem(loads, work(), (DeviceGroup(DEVICES["h100"], hosts, 8),), JAXFLOW, EVERYTHING)
    started = time.process_time()
    assert len(search(case)) == 4
    assert time.process_time() - started < limit
