"""What generates, whoever's weights it is given: the actor on its own pool, or a generator on another.

Knows the config and the engine; knows neither where the weights come from nor processes and transport.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from jaxflow.config import Config
from jaxflow.data.source import load_tokenizer
from jaxflow.data.stop_strings import stop_transitions
from jaxflow.engine.generate import UNLIMITED, Allowance, Generator
from jaxflow.engine.sampling import Sampling, StopTable
from jaxflow.engine.sharding import Layout
from jaxflow.models.transformer import Model, Params, Unstacked
from jaxflow.types import Prompts, Rollout

# Streams of randomness under the run's seed: what is drawn for one purpose never moves another.
_TRAINING_ROLLOUT, _VALIDATION_ROLLOUT = 0, 1


class Sampler:
    """Generation as the config asks for it: in training, greedy, in validation."""

    def __init__(self, config: Config, model: Model, layout: Layout):
        rollout = config.rollout
        self._config = config
        self._generator = Generator(model, layout, rollout.dtype, rollout.sequences_per_device)
        tokenizer = load_tokenizer(config.data.task, config.data.tokenizer)
        end_ids = () if rollout.ignore_end_token else tokenizer.end_ids
        self._end_ids = tuple(dict.fromkeys((*end_ids, *rollout.stop_token_ids)))
        self._pad_id = tokenizer.pad_id
        self._stops = None
        if rollout.stop_strings:
            texts = tokenizer.token_texts().of(model.config.vocabulary_size)
            table = stop_transitions(rollout.stop_strings, texts)
            # Every device has the whole table, and gets it once.
            self._stops = StopTable(
                jax.make_array_from_callback(table.shape, layout.sharding(()), lambda index: table[index])
            )

    def unstacked(self, params: Params, keep: Params) -> Unstacked:
        """Return weights in the generation layout as they are read here; their stacks go, but for those to `keep`."""
        return self._generator.unstacked(params, keep)

    def train(self, weights: Unstacked, prompts: Prompts, updates: int) -> Rollout:
        """Sample one response per row at the training temperature; `updates` is the age of the weights.

        A row that the budget or the deadline stopped has no say in the step: it would be judged for what there was no
        time to say.
        """
        rollout = self._config.rollout
        allowance = Allowance(rollout.token_budget, rollout.deadline_seconds)
        sampled = self._generate(weights, prompts, rollout.temperature, _TRAINING_ROLLOUT, updates, allowance)
        return _without_stopped(sampled)

    def greedy(self, weights: Unstacked, prompts: Prompts, updates: int) -> Rollout:
        """Give each row the response that is likeliest token by token."""
        return self._generate(weights, prompts, 0.0, _TRAINING_ROLLOUT, updates)

    def validate(self, weights: Unstacked, prompts: Prompts, updates: int) -> Rollout:
        """Sample one response per row as validation asks."""
        temperature = self._config.rollout.validation_temperature
        return self._generate(weights, prompts, temperature, _VALIDATION_ROLLOUT, updates)

    def take_figures(self) -> dict[str, float]:
        """Return the rate and the waste of all generation since the last time; nothing where there was none."""
        effort = self._generator.take_effort()
        if effort.response_tokens == 0:
            return {}
        passed = effort.prefill_tokens + effort.slot_steps
        return {
            "perf/generation_tokens_per_second": effort.response_tokens / effort.seconds,
            "perf/generation_slot_occupancy": effort.response_tokens / effort.slot_steps,
            "perf/generation_prefill_share": effort.prefill_tokens / passed,
        }

    def _generate(
        self,
        weights: Unstacked,
        prompts: Prompts,
        temperature: float,
        purpose: int,
        updates: int,
        allowance: Allowance = UNLIMITED,
    ) -> Rollout:
        rollout, seed = self._config.rollout, self._config.run.seed
        sampling = Sampling(
            temperature=temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            min_p=rollout.min_p,
            min_response_tokens=rollout.min_response_tokens,
            max_response_tokens=rollout.max_response_tokens,
            end_ids=self._end_ids,
            pad_id=self._pad_id,
        )
        return self._generator.generate(
            weights,
            prompts,
            sampling,
            seed,
            prompts.step,
            purpose,
            updates,
            stops=self._stops,
            allowance=allowance,
        )


def _without_stopped(rollout: Rollout) -> Rollout:
    kept = rollout.response_mask & ~rollout.stopped[:, None]
    return dataclasses.replace(
        rollout,
        response_mask=kept,
        rollout_log_probs=np.where(kept, rollout.rollout_log_probs, np.float32(0)),
        behaviour_log_probs=np.where(kept, rollout.behaviour_log_probs, np.float32(0)),
    )
