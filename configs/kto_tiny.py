"""KTO after a warm start on mediocre answers: two minutes on two CPU cores, no download.

It learns from single responses that were wanted or not; the built-in task's are the two of a pair, apart. Of one's own:

    --config.data.train_files=rows.jsonl --config.data.tokenizer=DIR --config.warm_start.steps=0

with rows {"prompt": …, "response": …, "label": true}, or pairs, which are two such rows each.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

# By its path: config files lie beside each other and are no package.
dpo_tiny = runpy.run_path(str(pathlib.Path(__file__).with_name("dpo_tiny.py")))


def get_config() -> ConfigDict:
    """Return dpo_tiny's task, model and beginning, with responses in the place of pairs."""
    config = dpo_tiny["get_config"]()
    config.algorithm.name = "kto"
    config.data.prompts_per_step = 256  # responses
    # One update a step: the reference point is of the policy that is updated.
    config.actor.minibatch_sequences = 256
    return config
