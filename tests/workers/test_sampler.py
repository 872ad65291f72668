"""What a config says of sampling is what happens to the rows."""

import jax
import numpy as np
import tiny
from good_config import config

from jaxflow.data.batches import fixed_batch
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
    prompts, weights = fixed_batch([row] * 3, 1, step=0), tiny.weights(model, layout)
    sampled = sampler.train(weights, prompts, 0)
    assert sampled.stopped.all() and not sampled.response_mask.any()
    assert sampled.lengths[0] > 3 and sampled.lengths[-1] == 3, "what was drawn is there, and may be nothing"
    assert not any(leaf.any() for leaf in (sampled.rollout_log_probs, sampled.behaviour_log_probs))
    validated = sampler.validate(weights, prompts, 0)
    assert not validated.stopped.any() and (validated.response_mask.sum(axis=1) == 40).all()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(sampled))
