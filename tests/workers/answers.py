"""Responses that say what a test wants said."""

import numpy as np

from jaxflow.data.batches import fixed_batch
from jaxflow.types import Rollout


def answered(tokenizer, rows, answers):
    """Prompts and a rollout in which the i-th row answers the i-th text, the end token behind it."""
    prompts = fixed_batch(rows, 1, 1, step=5)
    responses = [(*tokenizer.encode(answer), 1) for answer in answers]
    lengths = prompts.lengths + np.array([len(response) for response in responses], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for row, prompt, response in zip(tokens, rows, responses, strict=True):
        row[: len(prompt.tokens) + len(response)] = (*prompt.tokens, *response)
    column = np.arange(tokens.shape[1])
    mask = (column >= prompts.lengths[:, None]) & (column < lengths[:, None])
    zeros, finished = np.zeros(tokens.shape, np.float32), np.ones(len(rows), bool)
    groups = prompts.groups
    return prompts, Rollout(tokens, lengths, mask, zeros, zeros, finished, groups, groups, ~finished)
