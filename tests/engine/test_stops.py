"""What ends a response, how early it may, and whose randomness it is drawn from, in whole generations."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import tiny

from jaxflow.data.stop_strings import stop_transitions
from jaxflow.data.token_texts import character_texts
from jaxflow.engine.generate import Generator
from jaxflow.engine.sampling import Sampling, StopTable
from jaxflow.engine.sharding import generation_layout

LIMIT = 12
SAMPLING = Sampling(
    temperature=1.3,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    min_response_tokens=0,
    max_response_tokens=LIMIT,
    end_ids=(),
    pad_id=0,
)
LETTERS = "abc" * 16 + "ab"  # of the 50 tokens, so that pairs of letters are frequent
STOPS = ("abba", "cc", "bab")
LAYOUT = generation_layout(tiny.ONE_DEVICE)
TABLE = StopTable(jnp.asarray(stop_transitions(STOPS, character_texts(LETTERS, 0))))
GENERATOR = Generator(tiny.LANGUAGE_MODEL, LAYOUT, "float32", 16)
PROMPTS = tiny.prompts(16)


def responses(sampling, stops=None, prompts=PROMPTS, seed=0, step=0):
    weights = tiny.weights(tiny.LANGUAGE_MODEL, LAYOUT)
    rollout = GENERATOR(weights, prompts, sampling, seed, step, purpose=0, policy_updates=0, stops=stops)
    rows = zip(rollout.tokens, rollout.response_mask, strict=True)
    return [tokens[mask].tolist() for tokens, mask in rows], rollout.finished.tolist()


def stopped(tokens, least):
    """The response up to the token that completes a stop string, at least `least` tokens before it; the whole else."""
    text = "".join(LETTERS[token] for token in tokens)
    for n in range(least + 1, len(text) + 1):
        if text[:n].endswith(STOPS):
            return tokens[:n], True
    return tokens, False


def test_a_response_ends_with_the_token_that_completes_a_stop_string():
    whole, finished = responses(SAMPLING)
    assert not any(finished)
    for least in (0, 5):
        sampling = dataclasses.replace(SAMPLING, min_response_tokens=least)
        expected = [stopped(tokens, least) for tokens in whole]
        assert 3 < sum(ended for _, ended in expected) < len(expected)
        assert responses(sampling, TABLE) == tuple(map(list, zip(*expected, strict=True)))


def test_no_response_ends_before_its_least_length():
    sampling = dataclasses.replace(SAMPLING, end_ids=tuple(range(25)), min_response_tokens=4)
    tokens, finished = responses(sampling)
    assert sum(finished) > 8 and min(map(len, tokens)) == 5
    for row, ended in zip(tokens, finished, strict=True):
        assert not set(row[:-1]) & set(sampling.end_ids) and ended == (row[-1] in sampling.end_ids)


def test_a_row_with_a_seed_of_its_own_says_the_same_at_any_place_of_any_step_of_any_run():
    seeds = np.where(np.arange(16) % 2 == 0, np.arange(16) + 3, -1).astype(np.int32)
    given = dataclasses.replace(PROMPTS, own_seeds=seeds)
    before, _ = responses(SAMPLING, prompts=given)
    order = np.roll(np.arange(16), 5)
    after, _ = responses(SAMPLING, prompts=tiny.prompt_rows(given, order), seed=1, step=2)
    same = [before[row] == after[place] for place, row in enumerate(order)]
    np.testing.assert_array_equal(same, seeds[order] >= 0)
