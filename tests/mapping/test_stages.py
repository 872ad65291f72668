"""Stages and bytes of a layout: what shrinks with devices shrinks, what the engine's own arithmetic says is said."""

import dataclasses

import pytest
from mapping.shapes import LLAMA_13B, TINY, actor, critic, frozen, work

from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping import cost, memory, stages
from jaxflow.mapping.devices import DEVICES
from jaxflow.mapping.engine_profile import JAXFLOW, MEGATRON_VLLM
from jaxflow.mapping.stages import Setting
from jaxflow.placement import MeshSizes, role_bytes

HERE = Setting(work(), JAXFLOW, DEVICES["h100"], 8)
PAPER = Setting(work(), MEGATRON_VLLM, DEVICES["a100-80"], 8)


MIXTURE = dataclasses.replace(TINY, experts=4, experts_per_token=2)


def layout(data=1, fsdp=1, tensor=1, generation_tensor=1, pipe=1, generation_pipe=1, expert=1) -> Parallelism:
    return Parallelism(
        data=data,
        fsdp=fsdp,
        tensor=tensor,
        generation_tensor=generation_tensor,
        pipe=pipe,
        generation_pipe=generation_pipe,
        expert=expert,
    )


@pytest.mark.parametrize(("decoder", "expert"), [(TINY, 1), (MIXTURE, 1), (MIXTURE, 4)])
@pytest.mark.parametrize("role", ["actor", "critic", "reference", "reward"])
def test_bytes_at_rest_are_those_of_the_placement(role, decoder, expert):
    load = {"actor": actor(decoder), "critic": critic(decoder)}.get(role, frozen(role, decoder))
    sizes = MeshSizes(data=2, fsdp=2, tensor=2, micro=2, expert=expert)
    held = role_bytes(role, decoder, sizes, "bfloat16")
    here = layout(data=2, fsdp=2, tensor=4, generation_tensor=2, expert=expert)
    rest = memory.at_rest(load, here, HERE)
    # A router is whole on every tensor rank; the formula cuts it with the rest.
    within = {"rel": 0.0, "abs": 0.0} if decoder.experts == 0 else {"rel": 0.02}
    assert rest.weights == pytest.approx(held.weights, **within)
    # The placement counts one gradient with the moments; here gradients are of the update alone.
    one_gradient = held.training // 3
    assert rest.optimizer == pytest.approx(held.training - one_gradient, **within)
    if load.trained:
        assert memory.training(load, here, HERE).gradients == pytest.approx(2 * one_gradient, **within)
    if role == "actor":
        assert memory.rollout_weights(load, here, HERE) == pytest.approx(held.rollout, **within)


def test_ranks_that_cut_experts_pass_tokens_for_gradients():
    many = dataclasses.replace(LLAMA_13B, mlp_width=1024, experts=64, experts_per_token=4)
    replicas, experts = (
        stages.train_seconds(actor(many), one, HERE) for one in (layout(data=8), layout(expert=8))
    )
    gradients = 4 * many.layers * 3 * many.width * many.mlp_width * many.experts
    saved = HERE.device.link_bandwidth * HERE.device.link_efficiency
    # Replicas sum the gradients of every expert in every micro-batch (one of 8 rows, 8 updates), 2 · 7/8 of them.
    exchanged = 8 * 2 * 7 / 8 * gradients / saved
    # Ranks that cut them gather and scatter 16,384 tokens of each rank instead, four times with remat's two passes.
    tokens = 8 * 3 * 2 * many.layers * 7 * 2 * 16384 * many.width / saved
    assert replicas.links - experts.links == pytest.approx(exchanged - tokens, rel=1e-3)
    assert experts.compute == replicas.compute


def test_weights_that_a_policy_is_compared_with_are_held_and_passed_through():
    alone, here = actor(LLAMA_13B), layout(data=2, fsdp=2, tensor=4)
    compared = dataclasses.replace(alone, score_references=1, learn_references=1)
    kept = memory.at_rest(compared, here, HERE).total - memory.at_rest(alone, here, HERE).total
    assert kept == pytest.approx(4 * alone.model.parameters / 8, rel=1e-3)
    one, two = (stages.score_seconds(load, here, HERE).total for load in (alone, compared))
    assert two == pytest.approx(2 * one)
    # With remat the layers pass four times instead of thrice and once more, the head four times and twice more.
    one, two = (stages.train_seconds(load, here, HERE).compute for load in (alone, compared))
    layers, head = LLAMA_13B.layers * alone.model.layer_products, alone.model.head_products
    products = 2 * 128 * 8 * 2048 / 16 * (layers + 2 * head)
    attention = cost.attention_flops(alone.model, 128 * 8 * 2048 / 16, 1024)
    device = HERE.device
    expected = products / device.matmul_efficiency + attention / device.attention_efficiency
    assert two - one == pytest.approx(expected / device.matmul_flops)


def test_a_mixture_that_evens_out_its_load_counts_it_in_a_pass_of_its_own():
    plain, here = actor(MIXTURE), layout(data=2, tensor=2)
    counted = dataclasses.replace(plain, counts_choices=True)
    one, two = (stages.train_seconds(load, here, HERE) for load in (plain, counted))
    headless = dataclasses.replace(plain.model, head_products=0)
    forward = stages.score_seconds(dataclasses.replace(plain, model=headless), here, HERE)
    assert two.compute - one.compute == pytest.approx(forward.compute)
    assert two.links - one.links == pytest.approx(forward.links)


def test_the_papers_state_is_18_bytes_per_parameter():
    load = actor(LLAMA_13B)
    rest = memory.at_rest(load, layout(tensor=8, pipe=2), PAPER)
    assert rest.total == pytest.approx(18 * load.model.parameters / 16, rel=1e-3)
    shared = memory.at_rest(load, layout(tensor=8, data=2), PAPER)
    assert shared.total == pytest.approx((6 / 8 + 12 / 16) * load.model.parameters, rel=1e-3)


def test_micro_batches_hold_all_rows_within_the_budget():
    for sequences in (1, 7, 128, 1024):
        for budget in (1, 4096, 16384):
            micro = stages.cut(sequences, layout(data=2, fsdp=3, pipe=4), 2048, budget)
            rows = -(-sequences // 6)
            assert (
                micro.rows * micro.microbatches >= rows > micro.rows * (micro.microbatches - 1) - micro.rows
            )
            assert micro.rows * 2048 <= max(budget, 2048)


@pytest.mark.parametrize("stage", [stages.score_seconds, stages.train_seconds])
def test_more_replicas_take_less_time_until_exchanges_cost_more(stage):
    times = [stage(actor(LLAMA_13B), layout(data=d, tensor=8), HERE).total for d in (1, 2, 4)]
    assert times == sorted(times, reverse=True)


def test_gradients_are_exchanged_once_per_update_or_in_every_micro_batch():
    load, two = actor(LLAMA_13B), layout(data=2, tensor=8)
    slow = dataclasses.replace(HERE, device=dataclasses.replace(HERE.device, network_bandwidth=1e9))
    often = stages.train_seconds(load, two, slow).links
    once_engine = dataclasses.replace(JAXFLOW, reduces_each_microbatch=False)
    once = stages.train_seconds(load, two, dataclasses.replace(slow, engine=once_engine)).links
    inside = stages.train_seconds(load, layout(tensor=8), slow).links / 2
    microbatches = stages.cut(128, two, 2048, 16384).microbatches
    assert microbatches == 8
    assert (often - inside) / (once - inside) == pytest.approx(microbatches, rel=0.02)


def test_rounds_repeat_what_one_round_costs():
    load, here = actor(LLAMA_13B), layout(tensor=8, generation_tensor=8)
    whole, halves = (stages.generate_seconds(load, here, HERE, rows) for rows in (1024, 512))
    assert whole.total < halves.total < 2 * whole.total
    assert halves.total == pytest.approx(stages.generate_seconds(load, here, HERE, 600).total)


def test_a_cache_is_read_as_long_as_it_is_by_then():
    short = work(prompt=12, response=500)  # 256 positions, then all 512
    assert stages.mean_positions(short, 1) == pytest.approx((224 * 256 + 276 * 512) / 500)
    assert stages.mean_positions(short, 3) == pytest.approx((stages.mean_positions(short, 1) + 2 * 512) / 3)
    assert stages.mean_positions(work(), 1) == 2048  # 1,056 positions are read of 2,048


def test_samples_of_a_prompt_share_its_prefill():
    load, here = actor(LLAMA_13B), layout(tensor=8, generation_tensor=8)
    alone, shared = (
        dataclasses.replace(HERE, workload=dataclasses.replace(work(), samples_per_prompt=samples))
        for samples in (1, 8)
    )
    # Eight prompts of 1,024 tokens go through a replica at a time.
    assert stages.prefills(1024, alone.workload) == (128, 8)
    assert stages.prefills(1024, shared.workload) == (16, 8)
    assert stages.prefills(4, alone.workload) == (1, 4)
    one, eight = (stages.generate_seconds(load, here, setting, 256) for setting in (alone, shared))
    flops = 112 * 8 * 1024 * 2 * load.model.layers * load.model.layer_products / 8
    flops_seconds = flops / (HERE.device.matmul_flops * HERE.device.matmul_efficiency)
    assert one.compute - eight.compute > flops_seconds
    assert memory.prefill_bytes(load, here, alone) > 8 * 1024 * 819200 / 8


def test_a_second_response_doubles_generation():
    once = actor(LLAMA_13B)
    twice = dataclasses.replace(once, generations=2)
    both = [stages.generate_seconds(load, layout(tensor=8), HERE, 64).total for load in (once, twice)]
    assert both[1] == pytest.approx(2 * both[0])


def test_generation_bytes_are_linear_in_rows():
    load, here = actor(LLAMA_13B), layout(tensor=8, generation_tensor=4)
    one, three = (memory.generation(load, here, HERE, rows) for rows in (1, 3))
    assert three.cache == pytest.approx(3 * 2048 * 819200 / 4)
    assert three.total - one.total == pytest.approx(2 * memory.row_bytes(load, here, HERE))
