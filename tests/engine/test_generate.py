"""Generation is the model's own distribution, wherever and in whatever company a row is generated."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
from models import numpy_decoder

from jaxflow.engine import schedule
from jaxflow.engine.generate import Allowance, Generator
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.score import Scorer
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.slots import Address, Queue, Ready, SlotPrograms
from jaxflow.models import transformer
from jaxflow.models.layers import Turned

LIMIT = 10
END_IDS = (1, 2, 3, 4, 5)  # a tenth of the vocabulary, so that about half of the rows end by themselves
SAMPLING = Sampling(
    temperature=1.3,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    min_response_tokens=0,
    max_response_tokens=LIMIT,
    end_ids=END_IDS,
    pad_id=0,
)
GREEDY = dataclasses.replace(SAMPLING, temperature=0.0)
PROMPTS = tiny.prompts()
SINGLE = (1, 1, 1, 1)


@functools.cache
def loaded(sizes, sequences_per_device, dtype="float32", chunk_steps=4):
    layout = generation_layout(tiny.mesh_of(sizes))
    generator = Generator(tiny.LANGUAGE_MODEL, layout, dtype, sequences_per_device, chunk_steps)
    return generator, tiny.weights(tiny.LANGUAGE_MODEL, layout)


def generate(
    sizes=SINGLE,
    sequences_per_device=16,
    prompts=PROMPTS,
    sampling=SAMPLING,
    seed=0,
    step=0,
    purpose=0,
    chunk_steps=4,
    **more,
):
    generator, params = loaded(sizes, sequences_per_device, chunk_steps=chunk_steps)
    return generator(params, prompts, sampling, seed, step, purpose, policy_updates=0, **more)


@pytest.fixture(scope="module")
def sampled():
    return generate()


@pytest.fixture(scope="module")
def greedy():
    return generate(sampling=GREEDY)


@pytest.fixture(scope="module")
def host_params():
    return jax.device_get(tiny.weights(tiny.LANGUAGE_MODEL, training_layout(tiny.ONE_DEVICE)))


def real_tokens(rollout):
    return [tokens[:length].tolist() for tokens, length in zip(rollout.tokens, rollout.lengths, strict=True)]


def responses(rollout):
    return [tokens[mask].tolist() for tokens, mask in zip(rollout.tokens, rollout.response_mask, strict=True)]


def assert_same_rollout(actual, expected):
    assert real_tokens(actual) == real_tokens(expected)
    np.testing.assert_array_equal(actual.response_mask, expected.response_mask)
    np.testing.assert_array_equal(actual.finished, expected.finished)
    np.testing.assert_allclose(actual.rollout_log_probs, expected.rollout_log_probs, atol=1e-4)
    np.testing.assert_allclose(actual.behaviour_log_probs, expected.behaviour_log_probs, atol=1e-4)


def test_prompts_come_back_untouched_in_front_of_their_responses(sampled):
    assert len(set(PROMPTS.lengths)) > 5
    for row, length in enumerate(PROMPTS.lengths):
        np.testing.assert_array_equal(sampled.tokens[row, :length], PROMPTS.tokens[row, :length])
        mask = np.zeros(sampled.tokens.shape[1], bool)
        mask[length : sampled.lengths[row]] = True
        np.testing.assert_array_equal(sampled.response_mask[row], mask)
    np.testing.assert_array_equal(sampled.groups, PROMPTS.groups)


def test_a_response_ends_with_its_first_end_token_or_at_the_limit(sampled):
    answered = responses(sampled)
    assert 0 < sum(sampled.finished) < len(answered)
    for response, finished in zip(answered, sampled.finished, strict=True):
        assert 1 <= len(response) <= LIMIT
        assert not set(response[:-1]) & set(END_IDS)
        assert finished == (response[-1] in END_IDS)
        assert finished or len(response) == LIMIT


@pytest.mark.slow
def test_an_end_token_at_the_limit_is_an_end():
    whole = responses(generate(sampling=dataclasses.replace(SAMPLING, end_ids=())))
    row = next(row for row, response in enumerate(whole) if response[-1] not in response[:-1])
    rollout = generate(sampling=dataclasses.replace(SAMPLING, end_ids=(whole[row][-1],)))
    assert responses(rollout)[row] == whole[row] and rollout.finished[row]


def test_without_end_tokens_every_row_runs_to_the_limit(sampled):
    rollout = generate(sampling=dataclasses.replace(SAMPLING, end_ids=()))
    np.testing.assert_array_equal(rollout.lengths, PROMPTS.lengths + LIMIT)
    assert not rollout.finished.any()
    for ended, whole in zip(responses(sampled), responses(rollout), strict=True):
        assert whole[: len(ended)] == ended


@pytest.mark.slow
def test_a_limit_of_one_token_draws_one():
    rollout = generate(sampling=dataclasses.replace(SAMPLING, max_response_tokens=1))
    assert (rollout.response_mask.sum(axis=1) == 1).all()


def test_greedy_tokens_are_the_argmax_of_a_whole_forward_pass_at_each_step(greedy, host_params):
    logits = numpy_decoder.logits(host_params, tiny.CONFIG, greedy.tokens)
    for row, position in np.argwhere(greedy.response_mask):
        assert greedy.tokens[row, position] == logits[row, position - 1].argmax(), (row, position)


def test_log_probs_of_greedy_tokens_are_those_of_the_untempered_distribution(greedy, host_params):
    distribution = numpy_decoder.log_softmax(numpy_decoder.logits(host_params, tiny.CONFIG, greedy.tokens))
    for row, position in np.argwhere(greedy.response_mask):
        expected = distribution[row, position - 1].max()
        np.testing.assert_allclose(greedy.rollout_log_probs[row, position], expected, atol=1e-4)


def test_log_probs_are_those_that_training_will_see(sampled):
    layout = training_layout(tiny.ONE_DEVICE)
    params = tiny.weights(tiny.LANGUAGE_MODEL, layout)
    scorer = Scorer(tiny.LANGUAGE_MODEL, layout, 4096, SAMPLING.temperature)
    scored = scorer.log_probs(params, sampled.tokens, sampled.lengths, sampled.response_mask)
    np.testing.assert_allclose(sampled.rollout_log_probs, scored.log_probs, atol=1e-4)


@pytest.mark.slow
def test_log_probs_before_truncation_do_not_see_it_and_behaviour_log_probs_do():
    rollout = generate(sampling=dataclasses.replace(SAMPLING, top_k=5, top_p=0.9))
    layout = training_layout(tiny.ONE_DEVICE)
    scorer = Scorer(tiny.LANGUAGE_MODEL, layout, 4096, SAMPLING.temperature)
    params = tiny.weights(tiny.LANGUAGE_MODEL, layout)
    scored = scorer.log_probs(params, rollout.tokens, rollout.lengths, rollout.response_mask)
    np.testing.assert_allclose(rollout.rollout_log_probs, scored.log_probs, atol=1e-4)
    mask = rollout.response_mask
    assert (rollout.behaviour_log_probs[mask] >= rollout.rollout_log_probs[mask]).all()
    assert (rollout.behaviour_log_probs[mask] > rollout.rollout_log_probs[mask] + 1e-3).any()


def test_log_probs_are_zero_off_the_mask(sampled):
    assert not sampled.rollout_log_probs[~sampled.response_mask].any()
    assert not sampled.behaviour_log_probs[~sampled.response_mask].any()
    assert (sampled.rollout_log_probs[sampled.response_mask] < 0).all()


@tiny.ON_EVERY_MESH
def test_every_mesh_draws_the_same_tokens(sizes, sampled):
    assert_same_rollout(generate(sizes, sequences_per_device=4), sampled)


def test_large_matrices_turned_for_products_with_few_rows_draw_the_same_tokens(sampled, monkeypatch):
    monkeypatch.setattr(transformer, "_TURNED_FROM", 1)
    layout = generation_layout(tiny.mesh_of((2, 1, 4, 2)))
    generator, params = (
        Generator(tiny.LANGUAGE_MODEL, layout, "float32", 4),
        tiny.weights(tiny.LANGUAGE_MODEL, layout),
    )
    turned = jax.tree.leaves(
        generator.unstacked(params, params).layers, is_leaf=lambda leaf: isinstance(leaf, Turned)
    )
    assert sum(isinstance(leaf, Turned) for leaf in turned) == 7 * tiny.CONFIG.layers
    assert_same_rollout(generator(params, PROMPTS, SAMPLING, 0, 0, 0, policy_updates=0), sampled)


def test_two_devices_draw_the_same_tokens_a_few_rows_at_a_time(sampled):
    assert_same_rollout(generate((2, 1, 1, 1), sequences_per_device=4), sampled)


@pytest.mark.parametrize(
    ("slots", "chunk_steps"),
    [(3, 3), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, 4), (5, 1), (16, 32)))],
)
def test_neither_the_number_of_slots_nor_the_length_of_a_chunk_moves_a_token(slots, chunk_steps, sampled):
    assert_same_rollout(generate(sequences_per_device=slots, chunk_steps=chunk_steps), sampled)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_draw_the_tokens_of_one_and_share_its_budget(lanes, sampled):
    layout = generation_layout(tiny.mesh_of(SINGLE))
    params = tiny.weights(tiny.LANGUAGE_MODEL, layout)
    generator = Generator(tiny.LANGUAGE_MODEL, layout, "float32", 6, chunk_steps=4, lanes=lanes)
    asked = (params, PROMPTS, SAMPLING, 0, 0, 0)
    assert_same_rollout(generator(*asked, policy_updates=0), sampled)
    assert generator.take_effort().response_tokens == sampled.response_mask.sum()
    budget = int(sampled.response_mask.sum()) // 2
    cut = generator(*asked, policy_updates=0, allowance=Allowance(budget, 0.0))
    assert budget <= cut.response_mask.sum() < budget + lanes * 6 * 4
    assert cut.stopped.any() and not (cut.stopped & cut.finished).any()


def test_several_lanes_are_of_one_device():
    layout = generation_layout(tiny.mesh_of((2, 1, 1, 1)))
    with pytest.raises(ValueError, match="2 lanes on 2 devices"):
        Generator(tiny.LANGUAGE_MODEL, layout, "float32", 4, lanes=2)


def test_neither_growing_caches_nor_slots_that_move_together_move_a_token(sampled, monkeypatch):
    monkeypatch.setattr(schedule, "CAPACITY_UNIT", 4)
    monkeypatch.setattr(schedule, "BLOCK_POSITIONS", 1)
    sizes = []
    resize = SlotPrograms.resize

    def watched(programs, slots, origins, positions):
        sizes.append((len(origins), positions))
        return resize(programs, slots, origins, positions)

    monkeypatch.setattr(SlotPrograms, "resize", watched)
    monkeypatch.setattr(schedule, "LENGTH_UNIT", 4)
    short = np.flatnonzero(PROMPTS.lengths <= 4)
    longest = short[np.argmax(sampled.lengths[short] - PROMPTS.lengths[short])]
    limits = np.where(short == longest, LIMIT, 2)
    rollout = generate(chunk_steps=2, prompts=tiny.prompt_rows(PROMPTS, short), limits=limits)
    for cut, row, limit in zip(responses(rollout), short, limits, strict=True):
        assert cut == responses(sampled)[row][:limit]
    rows, positions = zip(*sizes, strict=True)
    assert min(rows) < len(short) and max(positions) > 8, sizes


def test_equal_prompts_side_by_side_share_a_prefill_and_draw_what_they_would_apart():
    together = tiny.prompt_rows(PROMPTS, np.repeat(np.arange(4), 3))
    together = dataclasses.replace(together, sequence_ids=np.arange(12, dtype=np.int32))
    apart = np.arange(12).reshape(4, 3).T.reshape(-1)
    shared, alone = generate(prompts=together), generate(prompts=tiny.prompt_rows(together, apart))
    assert real_tokens(alone) == [real_tokens(shared)[row] for row in apart]


def test_a_row_stops_at_a_limit_of_its_own(sampled):
    limits = np.arange(len(PROMPTS.lengths)) % (LIMIT + 3) + 1
    rollout = generate(limits=limits)
    for whole, cut, limit, finished in zip(
        responses(sampled), responses(rollout), limits, rollout.finished, strict=True
    ):
        assert cut == whole[:limit]
        assert finished == (cut[-1] in END_IDS)
    with pytest.raises(ValueError, match="at least one token"):
        generate(limits=limits - 1)


def test_a_call_stops_at_its_token_budget_and_gives_what_it_has(sampled):
    whole = int(sampled.response_mask.sum())
    for budget in (1, whole // 2, whole):
        rollout = generate(sequences_per_device=3, chunk_steps=3, allowance=Allowance(budget, 0.0))
        assert budget <= rollout.response_mask.sum() < budget + 3 * 3
        has = zip(responses(rollout), responses(sampled), strict=True)
        assert all(some == every[: len(some)] for some, every in has)
        lacks = rollout.lengths < sampled.lengths
        np.testing.assert_array_equal(rollout.stopped, lacks)
        np.testing.assert_array_equal(rollout.finished, sampled.finished & ~lacks)
        assert lacks.any() == (budget < whole)
        np.testing.assert_array_equal(rollout.lengths - PROMPTS.lengths, rollout.response_mask.sum(axis=1))


def test_a_call_stops_at_its_deadline_with_rows_that_never_began(sampled):
    rollout = generate(sequences_per_device=3, chunk_steps=3, allowance=Allowance(0, 1e-9))
    assert rollout.stopped.all() and not rollout.response_mask.any() and not rollout.finished.any()
    np.testing.assert_array_equal(rollout.lengths, PROMPTS.lengths)
    in_time = generate(sequences_per_device=3, chunk_steps=3, allowance=Allowance(0, 3600.0))
    assert_same_rollout(in_time, sampled)
    assert not in_time.stopped.any()


def test_a_slot_keeps_nothing_of_the_sequence_before():
    layout = generation_layout(tiny.ONE_DEVICE)
    programs = SlotPrograms(tiny.LANGUAGE_MODEL, layout, "float32", 4)
    params = tiny.weights(tiny.LANGUAGE_MODEL, layout)
    weights, address = programs.unstacked(params, params), Address(np.uint32(0), np.int32(0), np.int32(0))
    lengths, rows = PROMPTS.lengths[:4], np.arange(4, dtype=np.int32)
    queue = Queue(
        last=PROMPTS.tokens[rows, lengths - 1],
        positions=lengths - 1,
        ends=lengths + LIMIT,
        sequence_ids=rows,
        own_seeds=np.full(4, -1, np.int32),
    )
    ready = Ready(origins=rows[::-1].copy(), counts=np.array([3], np.int32))
    drawn = []
    for poison in (0.0, np.nan, 1e30):

        def poisoned(cache, poison=poison):
            return jax.tree.map(lambda array: jax.numpy.full_like(array, poison), cache)

        slots = programs.slots(4, 24)
        slots = dataclasses.replace(slots, cache=poisoned(slots.cache))
        prepared = poisoned(programs.prompts(4, 16))
        prepared = programs.prefill(weights, prepared, PROMPTS.tokens[:4], rows[::-1].copy())
        slots = programs.start(slots, prepared, queue, ready)
        assert np.asarray(slots.numbers).tolist() == [0, 1, 2, -1], "the fourth is not ready"
        for _ in range(2):
            queued = np.full(1, 3, np.int32)
            slots, chunk, progress = programs.decode(weights, slots, queued, address, None, SAMPLING)
            drawn.append(
                [np.asarray(chunk.tokens)[slot, :count] for slot, count in enumerate(progress.counts)]
            )
    for chunk in range(2):
        assert sum(map(len, drawn[chunk])) > 2
        for poisoned in drawn[chunk::2]:
            assert [tokens.tolist() for tokens in poisoned] == [tokens.tolist() for tokens in drawn[chunk]]


def test_rows_may_come_in_any_order(sampled):
    rows = np.random.default_rng(1).permutation(len(PROMPTS.lengths))
    rollout = generate(prompts=tiny.prompt_rows(PROMPTS, rows))
    assert real_tokens(rollout) == [real_tokens(sampled)[row] for row in rows]


def test_what_lies_behind_a_prompt_s_length_is_never_read(sampled):
    padding = np.arange(PROMPTS.tokens.shape[1]) >= PROMPTS.lengths[:, None]
    garbage = np.random.default_rng(2).integers(0, 50, PROMPTS.tokens.shape)
    poisoned = np.where(padding, garbage, PROMPTS.tokens).astype(np.int32)
    wide = np.pad(poisoned, ((0, 0), (0, 30)), constant_values=7)
    for tokens in (poisoned, wide):
        assert_same_rollout(generate(prompts=dataclasses.replace(PROMPTS, tokens=tokens)), sampled)


@pytest.mark.parametrize("address", [{"seed": 1}, {"step": 1}, {"purpose": 1}])
def test_another_seed_step_or_purpose_draws_other_tokens(address, sampled):
    assert responses(generate(**address)) != responses(sampled)


def test_the_same_address_draws_the_same_bits(sampled):
    tiny.assert_same_bits(jax.tree.leaves(generate()), jax.tree.leaves(sampled))


def test_samples_of_one_prompt_differ_and_share_their_first_log_probs():
    row = int(PROMPTS.lengths.argmax())
    same = tiny.prompt_rows(PROMPTS, np.full(len(PROMPTS.lengths), row))
    rollout = generate(prompts=dataclasses.replace(same, sequence_ids=PROMPTS.sequence_ids))
    assert len({tuple(response) for response in responses(rollout)}) > len(PROMPTS.lengths) // 2
    first, told = int(PROMPTS.lengths[row]), {}
    for tokens, log_probs in zip(rollout.tokens, rollout.rollout_log_probs, strict=True):
        assert told.setdefault(tokens[first], log_probs[first]) == pytest.approx(log_probs[first], abs=1e-5)


@pytest.mark.slow
def test_a_narrow_cache_stays_close():
    generator, params = loaded(SINGLE, 16, "bfloat16")
    forced = dataclasses.replace(GREEDY, max_response_tokens=2)
    narrow = generator(params, PROMPTS, forced, seed=0, step=0, purpose=0, policy_updates=0)
    wide = generate(sampling=forced)
    same = (narrow.tokens == wide.tokens).all(axis=1)
    assert same.sum() >= 10
    assert np.abs(narrow.rollout_log_probs - wide.rollout_log_probs)[same].max() < 0.1
