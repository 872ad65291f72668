"""Each term is the formula that it says it is, worked by hand or counted from the weights themselves."""

import dataclasses

import jax
import pytest
from mapping.shapes import LLAMA_7B, LLAMA_13B, LLAMA_70B, TINY

from jaxflow.mapping import cost
from jaxflow.mapping.cost import Seconds, Span
from jaxflow.mapping.devices import DEVICES
from jaxflow.mapping.model_size import model_size
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe

# A device that reaches its peaks and launches for nothing: what is left of a term is its formula.
IDEAL = dataclasses.replace(
    DEVICES["h200"],
    matmul_flops=790e12,
    memory_bandwidth=4.3e12,
    link_seconds=0.0,
    network_seconds=0.0,
    product_seconds=0.0,
    pointwise_seconds=0.0,
    matmul_efficiency=1.0,
    attention_efficiency=1.0,
    bandwidth_efficiency=1.0,
    link_efficiency=1.0,
    network_efficiency=1.0,
)
ALONE = Span(1, 1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", [LanguageModel, ScalarModel])
def test_sizes_are_those_of_the_weights(kind, tied):
    decoder = dataclasses.replace(TINY, tied_embeddings=tied)
    size = model_size(decoder, kind is LanguageModel)
    model = describe(decoder, kind)
    leaves = jax.tree.leaves(model.shapes)
    assert size.parameters == sum(leaf.size for leaf in leaves)
    layers = jax.tree.leaves(model.shapes["backbone"]["layers"])
    assert size.layers * size.layer_products == sum(leaf.size for leaf in layers if leaf.ndim > 2)
    assert size.products == size.parameters - size.vectors - (
        0 if tied and kind is LanguageModel else 8192
    ) + (decoder.width if kind is ScalarModel else 0)


@pytest.mark.parametrize(
    ("decoder", "bytes_per_token"), [(LLAMA_7B, 524288), (LLAMA_13B, 819200), (LLAMA_70B, 327680)]
)
def test_the_cache_of_known_models_is_what_is_published(decoder, bytes_per_token):
    assert cost.cache_bytes(model_size(decoder, True), 2, 1, 1) == bytes_per_token


def test_the_cache_is_cut_over_no_more_ranks_than_it_has_heads():
    model = model_size(LLAMA_70B, True)
    assert cost.cache_bytes(model, 2, 16, 1) == cost.cache_bytes(model, 2, 8, 1) == 327680 / 8


def test_flops_of_a_pass_are_counted_weight_by_weight():
    d, f, h, n, k, v, layers = 64, 96, 16, 8, 4, 128, 4
    per_token = layers * (2 * (d * n * h + 2 * d * k * h + n * h * d + 3 * d * f)) + 2 * d * v
    scores_and_mixing = layers * n * (2 * h * 20 + 2 * h * 20)
    assert cost.forward_flops(model_size(TINY, True), 7, 20) == 7 * (per_token + scores_and_mixing)


# One H200, from the published roofline: weights or products, whichever is longer, then the cache.
@pytest.mark.parametrize(
    ("rows", "context", "milliseconds"), [(64, 768, 9.07), (64, 1536, 15.1), (128, 768, 15.1)]
)
def test_a_decode_step_of_an_ideal_device_is_the_roofline(rows, context, milliseconds):
    step = cost.decode_step(model_size(LLAMA_7B, True), rows, context, 2, 1, 1, ALONE, IDEAL)
    assert 1e3 * (step.memory) == pytest.approx(milliseconds, rel=0.01)


def test_a_pipeline_does_not_read_weights_faster_but_its_cache():
    model = model_size(LLAMA_7B, True)
    one, two = (cost.decode_step(model, 64, 1024, 2, 1, pipe, ALONE, IDEAL).memory for pipe in (1, 2))
    cache, logits = 64 * 1024 * 524288 / 4.3e12, 3 * 4 * 64 * 32000 / 4.3e12
    assert one - two == pytest.approx((cache + logits) / 2)


def test_stages_exchange_less_in_a_layer_and_hand_on_what_they_made():
    model, ranks = model_size(LLAMA_7B, True), Span(2, 1)
    one, four = (cost.decode_step(model, 64, 1024, 2, 2, pipe, ranks, IDEAL).links for pipe in (1, 4))
    assert one == pytest.approx(4 * four)
    # 16 rows' states to the next stage, and from the last one to all four by a sum over them.
    handed = cost.stage_hops(16 * 4096, 2, Span(4, 1), IDEAL).links
    assert handed == pytest.approx(16 * 4096 * 2 * (1 + 2 * 3 / 4) / 450e9)
    assert cost.stage_hops(16 * 4096, 2, Span(4, 4), IDEAL).links > handed
    assert cost.stage_hops(16 * 4096, 2, ALONE, IDEAL) == Seconds()


def test_collectives_move_what_a_ring_moves():
    inside = Span(8, 1)
    assert cost.all_gather(8e9, inside, IDEAL).links == pytest.approx(7e9 / 450e9)
    assert cost.all_reduce(8e9, inside, IDEAL).links == pytest.approx(14e9 / 450e9)
    assert cost.all_gather(8e9, ALONE, IDEAL) == Seconds()
    # 16 devices on two hosts: a host lacks half, and its 8 members bring it over 8 × 50 GB/s.
    assert cost.all_gather(64e9, Span(16, 2), IDEAL).links == pytest.approx(
        max(15 / 16 * 64e9 / 450e9, 32e9 / 400e9)
    )


def test_small_collectives_cost_their_launch():
    device = DEVICES["h100"]
    assert cost.all_reduce(8.0, Span(8, 1), device).total == pytest.approx(device.link_seconds, rel=1e-3)
    assert cost.all_reduce(8.0, Span(16, 2), device).total == pytest.approx(device.network_seconds, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [(8, 1, Span(8, 1)), (16, 1, Span(16, 2)), (4, 8, Span(4, 4)), (4, 4, Span(4, 2)), (3, 8, Span(3, 3))],
)
def test_groups_lie_on_the_hosts_that_their_stride_gives(size, stride, expected):
    assert cost.span(size, stride, 8) == expected


@pytest.mark.parametrize(("pipe", "microbatches"), [(1, 4), (4, 4), (4, 12)])
def test_the_bubble_is_its_known_fraction(pipe, microbatches):
    whole = cost.pipelined(Seconds(compute=2.0), microbatches, pipe)
    assert whole.idle / whole.total == pytest.approx((pipe - 1) / (microbatches + pipe - 1))


def test_overlapped_work_takes_the_longer_of_both():
    for work, moving in ((2.0, 1.0), (1.0, 2.0)):
        both = cost.overlapped(Seconds(compute=work), Seconds(links=moving))
        assert both.total == pytest.approx(2.0 * cost.OVERLAP_SLOWDOWN)
    assert cost.overlapped(Seconds(compute=2.0), Seconds()).total == 2.0


# HybridFlow Table 2 for the layouts of its Fig. 14: (M in GB, t·p, t_g·p_g) -> GB per device.
@pytest.mark.parametrize(
    ("weights", "training", "generation", "expected"),
    [(14, 8, 2, 5.25), (26, 8, 4, 3.25), (68, 32, 8, 6.375), (140, 64, 8, 15.3125)],
)
def test_a_switch_receives_what_the_paper_says(weights, training, generation, expected):
    assert cost.transition_bytes(weights, training, generation) == pytest.approx(expected)


def test_a_switch_between_hosts_waits_for_their_network():
    # 70B, t 8 × p 8 -> t_g 8, 25 GB/s into each host: 122.5 GB are 4.9 s.
    device = dataclasses.replace(IDEAL, network_bandwidth=25e9 / 8)
    assert cost.transition(140e9, 64, 8, 8, device).links == pytest.approx(4.9)
    assert cost.transition(14e9, 8, 8, 8, device).links == 0.0
    # Its devices have one of two stages, whole as soon as they are together: nothing comes from the other host.
    inside = 7e9 * (1 - 1 / 8) / 450e9
    assert cost.transition(14e9, 16, 2, 8, device, needed=0.5).links == pytest.approx(inside)


def test_a_pass_divides_over_tensor_ranks_but_for_its_exchanges():
    model = model_size(LLAMA_13B, True)
    one, eight = (cost.whole_pass(model, 16384, 1024, 2, ways, Span(ways, 1), IDEAL) for ways in (1, 8))
    flops = 2 * 16384 * 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824) + 4 * 16384 * 40 * 5120 * 1024
    assert one.compute == pytest.approx(flops / 790e12)
    assert eight.compute == pytest.approx(one.compute / 8)
    assert one.links == 0.0
    assert eight.links == pytest.approx(40 * 2 * 2 * 7 / 8 * 16384 * 5120 * 2 / 450e9)


def test_the_optimizer_is_its_traffic():
    assert cost.optimizer_update(1e9, IDEAL).total == pytest.approx(32e9 / 4.3e12)
    assert cost.host_move(5e9, IDEAL).total == pytest.approx(0.1)


def test_rounds_hold_all_rows():
    assert [cost.rounds_of(rows, 8) for rows in (1, 8, 9, 64)] == [1, 1, 2, 8]


def test_seconds_name_what_bounds_them():
    both = Seconds(compute=1.0, links=0.5) + Seconds(memory=1.2)
    assert (both.total, both.bound, both.times(2).total) == (2.7, "memory", 5.4)
