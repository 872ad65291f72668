"""What a config says of sampling is what happens to the rows."""

import jax
import numpy as np
import tiny
from good_config import config

from jaxflow.data.batches import fixed_batch
from jaxflow.data.source import load_tokenizer
from jaxflow.engine.sharding import generation_layout
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.types import PromptRow
from jaxflow.workers.sampler import Sampler


def test_rows_that_a_budget_stops_have_no_say_in_training_and_validation_knows_no_budget():
    asked = config(
        rollout__token_budget=3,
        rollout__sequences_per_device=1,
        rollout__max_response_tokens=40,
        rollout__ignore_end_token=True,
    )
    model = describe(tiny.CONFIG, LanguageModel)
    layout = generation_layout(tiny.ONE_DEVICE)
    sampler = Sampler(asked, model, layout)
    row = PromptRow(prompt="ab>", tokens=(3, 4, 5), ground_truth="", data_source="tiny", extra_info={})
    prompts, params = fixed_batch([row] * 3, 1, 1, step=0), tiny.weights(model, layout)
    weights = sampler.unstacked(params, keep={})
    assert params["backbone"]["layers"]["mlp"]["up"].is_deleted(), "weights exist once"
    sampled = sampler.train(weights, prompts, 0)
    assert sampled.stopped.all() and not sampled.response_mask.any()
    assert sampled.lengths[0] > 3 and sampled.lengths[-1] == 3, "what was drawn is there, and may be nothing"
    assert not any(leaf.any() for leaf in (sampled.rollout_log_probs, sampled.behaviour_log_probs))
    figures = sampler.take_figures()
    assert figures["perf/generation_slot_occupancy"] == 1 and figures["perf/generation_tokens_per_second"] > 0
    assert sampler.take_figures() == {}
    validated = sampler.validate(weights, prompts, 0)
    assert not validated.stopped.any() and (validated.response_mask.sum(axis=1) == 40).all()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(sampled))


def test_a_config_s_stop_strings_and_least_length_end_rows():
    """The model has more tokens than the tokenizer: the others say nothing."""
    asked = config(
        rollout__stop_strings=("1", "23"),
        rollout__stop_token_ids=(4,),
        rollout__min_response_tokens=2,
        rollout__max_response_tokens=30,
        rollout__ignore_end_token=True,
    )
    layout, tokenizer = generation_layout(tiny.ONE_DEVICE), load_tokenizer(asked.data.task, "")
    assert tokenizer.vocabulary_size < tiny.CONFIG.vocabulary_size
    row = PromptRow(prompt="12+", tokens=(3, 4, 5), ground_truth="", data_source="tiny", extra_info={})
    sampler = Sampler(asked, tiny.LANGUAGE_MODEL, layout)
    prompts = fixed_batch([row] * 24, 1, 1, step=0)
    weights = sampler.unstacked(tiny.weights(tiny.LANGUAGE_MODEL, layout), keep={})
    rollout = sampler.train(weights, prompts, 0)
    assert rollout.finished.sum() > 2
    for tokens, mask, finished in zip(rollout.tokens, rollout.response_mask, rollout.finished, strict=True):
        said, over = "", []
        for n, token in enumerate(tokens[mask].tolist()):
            own = tokenizer.decode([token] if token < tokenizer.vocabulary_size else [])
            said += own
            over.append(n > 1 and (token == 4 or (own != "" and said.endswith(("1", "23")))))
        assert not any(over[:-1]) and over[-1] == finished and (finished or len(over) == 30)
