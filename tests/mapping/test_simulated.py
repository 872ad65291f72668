"""Passes on simulated devices: each term is its formula, and calibration explains all of what it measured."""

import dataclasses
import json
import pathlib

import pytest
from good_config import split_config
from mapping.shapes import LLAMA_13B, TINY, actor, work

from jaxflow.engine.layout_rules import Parallelism
from jaxflow.mapping import calibrate_simulated, call_seconds, simulated, simulated_calls
from jaxflow.mapping.cost import Span
from jaxflow.mapping.devices import DEVICES, write_profile
from jaxflow.mapping.engine_profile import JAXFLOW
from jaxflow.mapping.model_size import model_size
from jaxflow.mapping.plan import setting_of
from jaxflow.mapping.stages import Setting

CPU = dataclasses.replace(DEVICES["cpu"], dispatch_seconds=1e-3)
ALONE = Span(1, 1)
# Nothing but arithmetic takes time.
IDEAL = dataclasses.replace(CPU, memory_bandwidth=1e30, product_seconds=1e-30, pointwise_seconds=1e-30)


def layout(data=1, tensor=1, generation_tensor=1) -> Parallelism:
    return Parallelism(
        data=data,
        fsdp=1,
        tensor=tensor,
        generation_tensor=generation_tensor,
        pipe=1,
        generation_pipe=1,
    )


def setting(devices_per_host=4, device=CPU, sequences=64) -> Setting:
    tiny = dataclasses.replace(work(sequences=sequences, prompt=8, response=8, most_rows=64), remat=False)
    return Setting(tiny, JAXFLOW, device, devices_per_host)


def test_a_product_takes_its_arithmetic_and_then_its_operands():
    one = simulated.product(100, 20, 30, CPU)
    assert one.compute == pytest.approx(2 * 100 * 20 * 30 / (25e9 * 0.72))
    assert one.memory == pytest.approx(4 * (100 * 20 + 20 * 30 + 100 * 30) / 5e9)


def test_the_products_of_a_layer_are_its_weights():
    for decoder in (TINY, LLAMA_13B):
        model = model_size(decoder, True)
        flops = 2.0 * 16 * model.layer_products
        spent = simulated.layer_products(model, 16, 1, IDEAL).compute
        assert spent == pytest.approx(flops / (25e9 * 0.72))
        assert simulated.layer_products(model, 16, 2, IDEAL).compute == pytest.approx(spent / 2)


def test_a_backward_pass_runs_products_twice_and_with_remat_thrice():
    model = model_size(TINY, True)
    products = simulated.layer_products(model, 64, 1, IDEAL).compute
    mixed = simulated.attention(64, 16, model, 1, IDEAL).compute
    for remat, times in ((False, 2), (True, 3)):
        back = simulated.backward_layer(model, 64, 16, 1, ALONE, remat, IDEAL)
        assert back.compute == pytest.approx(times * products + 3 * mixed)


def test_tensor_ranks_sum_twice_forward_and_five_activations_backward():
    model, pair = model_size(TINY, True), Span(2, 1)
    once = 4 * 64 * TINY.width / CPU.link_bandwidth
    launched = (simulated.FORWARD_OPERATIONS, simulated.BACKWARD_OPERATIONS)
    ahead = simulated.forward_layer(model, 64, 16, 2, pair, CPU)
    back = simulated.backward_layer(model, 64, 16, 2, pair, False, CPU)
    assert (ahead.links, back.links) == (pytest.approx(2 * once), pytest.approx(5 * once))
    # XLA's CPU collectives take the arrays of one launch one by one.
    for layer, operations, summed in zip((ahead, back), launched, (2, 5), strict=True):
        assert layer.latency == pytest.approx(operations * CPU.product_seconds + summed * CPU.link_seconds)


def test_between_processes_a_sum_waits_for_a_turn_and_leaves_the_core():
    inside, across = (simulated.sums(3, 1e6, Span(2, hosts), CPU) for hosts in (1, 2))
    assert (inside.latency, inside.idle) == (pytest.approx(3 * CPU.link_seconds), 0.0)
    assert (across.latency, across.idle) == (0.0, pytest.approx(3 * CPU.network_seconds))
    assert across.links == pytest.approx(3 * 1e6 / CPU.network_bandwidth)
    assert CPU.among(8).network_seconds == CPU.network_seconds


def test_an_update_over_processes_waits_once_for_each_array_that_it_sums():
    load, free = actor(minibatch=64, updates=3), dataclasses.replace(CPU, dispatch_seconds=0.0)
    waited = call_seconds.train_seconds(load, layout(2, 2), setting(2, free)).idle / CPU.network_seconds
    of_layer = 2 + 5 + 9  # activations ahead and back, gradients
    of_head = 2 + 7 + 3 + 4  # what was looked up, numbers of tokens, gradients, the loss's numbers
    assert waited == pytest.approx(3 * (TINY.layers * of_layer + of_head + 18) + 2 * 2)


def test_generation_over_processes_waits_at_every_token():
    def waited(tokens: int) -> float:
        one = setting(2)
        one = dataclasses.replace(one, workload=dataclasses.replace(one.workload, response_tokens=tokens))
        return call_seconds.generate_seconds(actor(), layout(2, 2), one, 64).idle / CPU.network_seconds

    assert waited(8) - waited(4) == pytest.approx(3 * 4)
    assert waited(40) - waited(8) == pytest.approx(3 * 32 + 4)  # a second chunk is read


def test_the_hosts_part_of_a_generation_is_each_processs_rows():
    known = dataclasses.replace(CPU, generation_seconds=1.0, generation_row_seconds=0.1)
    one, two = (call_seconds.generate_seconds(actor(), layout(4), setting(n, known), 64) for n in (4, 2))
    free = call_seconds.generate_seconds(actor(), layout(4), setting(4), 64)
    assert one.host - free.host == pytest.approx(1.0 + 64 * 0.1)
    told = 2 * CPU.dispatch_seconds
    assert one.host - two.host == pytest.approx(32 * 0.1 - told)


def test_calls_that_generate_are_explained_by_the_profile_that_was_made_of_them():
    profile = dataclasses.replace(CPU, simulated=2)
    few, many = calibrate_simulated._GENERATED
    made = calibrate_simulated._with_generation(profile, [5.0, 9.0])
    free = calibrate_simulated._with_generation(profile, [1e-9, 1e-9])
    assert (free.generation_seconds, free.generation_row_seconds) == (0.0, 0.0)
    assert made.generation_seconds > 0.0
    for rows, seconds in ((few, 5.0), (many, 9.0)):
        one = setting(2, made, 2 * rows)
        asked = dataclasses.replace(one.workload, response_tokens=1)
        one = dataclasses.replace(one, workload=dataclasses.replace(asked, most_rows=rows))
        load = actor(calibrate_simulated._DECODER)
        assert call_seconds.generate_seconds(load, layout(2), one, rows).total == pytest.approx(seconds)


def test_a_reference_layer_is_explained_by_the_profile_that_was_made_of_it():
    model, tokens, length = model_size(calibrate_simulated._DECODER, True), 2048, 32
    profile = calibrate_simulated._with_pointwise(CPU, 0.5, 1.5)
    profile = calibrate_simulated._with_decoding(profile, 0.3, 0.4)
    assert simulated.forward_layer(model, tokens, length, 1, ALONE, profile).total == pytest.approx(0.5)
    assert simulated.backward_layer(model, tokens, length, 1, ALONE, False, profile).total == pytest.approx(
        1.5
    )
    assert simulated.decode_layer(model, 128, 32, 1, ALONE, profile).total == pytest.approx(0.3)
    assert simulated.draw(model, 128, 1, ALONE, Span(4, 1), profile).total == pytest.approx(0.4)


def test_what_is_left_to_explain_is_never_faster_than_caches():
    profile = calibrate_simulated._with_pointwise(CPU, 1e-9, 1e-9)
    assert profile.pointwise_efficiency == profile.gradient_efficiency == 4.0


def test_devices_share_their_cores_and_lose_nothing_by_it():
    alone, crowd = CPU.among(1), CPU.among(8)
    assert alone.matmul_flops == pytest.approx(4 * CPU.matmul_flops) == pytest.approx(8 * crowd.matmul_flops)
    assert crowd.among(4).product_seconds == pytest.approx(CPU.product_seconds)
    assert DEVICES["h100"].among(8) is DEVICES["h100"]


@pytest.mark.parametrize("call", [simulated_calls.score_seconds, simulated_calls.train_seconds])
def test_two_processes_sum_through_sockets_even_what_one_of_them_has(call):
    slow = dataclasses.replace(CPU, network_bandwidth=1e6)
    inside, across = (call(actor(), layout(2, 2), setting(hosted, slow)) for hosted in (4, 2))
    assert across.links > 100 * inside.links
    assert across.compute == inside.compute


def test_every_micro_batch_and_update_starts_programs():
    whole = call_seconds.train_seconds(actor(minibatch=64, updates=2), layout(), setting())
    assert whole.host == pytest.approx(2 * (1 + 2) * 1e-3)
    small = dataclasses.replace(actor(minibatch=64, updates=2), microbatch_tokens=16 * 16)
    assert call_seconds.train_seconds(small, layout(), setting()).host == pytest.approx(2 * (4 + 2) * 1e-3)


def test_prompts_are_prefilled_once_for_all_their_samples():
    one = setting()
    four = dataclasses.replace(one, workload=dataclasses.replace(one.workload, samples_per_prompt=4))
    apart, shared = (call_seconds.generate_seconds(actor(), layout(), s, 64).compute for s in (one, four))
    model = actor().model
    prefill = simulated.forward_layer(model, 64 * 8, 8, 1, ALONE, CPU).compute * model.layers
    assert apart - shared == pytest.approx(
        prefill - simulated.forward_layer(model, 16 * 8, 8, 1, ALONE, CPU).compute * model.layers
    )


@pytest.mark.parametrize(
    ("launcher", "cores", "crowd"),
    [
        # Two processes of four devices on a core each, a third one of three on the first core.
        ("ray", 2, {"main": 8, "judges": 6}),
        ("ray", 3, {"main": 12, "judges": 9}),  # a core each
        ("inprocess", 2, {"main": 8, "judges": 3}),  # one process on all
    ],
)
def test_devices_are_as_crowded_as_on_the_cores_that_a_run_gives_their_process(
    launcher, cores, crowd, tmp_path
):
    write_profile(dataclasses.replace(CPU, cores=cores), tmp_path / "here.json")
    here = str(tmp_path / "here.json")
    asked = split_config(cluster__launcher=launcher, cluster__devices__kind=here)
    assert {name: setting_of(asked, name).device.simulated for name in crowd} == crowd


def test_real_devices_have_the_terms_that_they_had():
    real = setting(device=DEVICES["h100"])
    assert call_seconds.train_seconds(actor(), layout(), real).host == 0.0


def test_the_controllers_seconds_are_those_that_were_measured():
    file = pathlib.Path(__file__).parents[2] / "experiments" / "controller_overhead.json"
    for row in json.loads(file.read_text())["rows"]:
        case = row["case"]
        if case["sweep"] == "paper's step":  # roles that sleep
            continue
        shape = layout(data=case["processes"])
        asked = setting(devices_per_host=1, sequences=case["rows"])
        step = 9 * call_seconds.controller_seconds(shape, asked).total
        assert step == pytest.approx(row["wall"], rel=0.4), case
