"""Training one model on one mesh: micro-batches, accumulation by global counts, one guarded update.

Knows no algorithm: the loss is a function of what the model says of a micro-batch, the micro-batch, and the
mini-batch's global counts, so the update does not depend on how rows are cut into micro-batches or devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

from jaxflow.engine.batching import plan_micro_batches, take
from jaxflow.engine.optimizer import Optimizer
from jaxflow.engine.score import token_log_probs, token_values
from jaxflow.engine.sharding import Layout
from jaxflow.engine.state import TrainState, state_shardings
from jaxflow.models.transformer import LanguageModel, Model, Params
from jaxflow.types import Counts, TokenLogProbs


class TrainingBatch(Protocol):
    """What every batch to train on has, whatever else its loss reads."""

    tokens: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    response_mask: Bool[Array, "B T"]


Loss = Callable[[TokenLogProbs | Array, Any, Counts], tuple[Array, Mapping[str, Array]]]
"""(what the model says, micro-batch, mini-batch counts) -> (scalar, named scalars); both add over micro-batches."""


def count_on_host(response_mask: np.ndarray) -> Counts:
    """Count a mini-batch's response tokens and sequences; at least one of each, to divide by."""
    tokens, sequences = int(response_mask.sum()), int(response_mask.any(axis=1).sum())
    return Counts(np.int32(max(tokens, 1)), np.int32(max(sequences, 1)))


class Trainer:
    """Runs optimizer updates of one model under one loss."""

    def __init__(
        self,
        model: Model,
        layout: Layout,
        optimizer: Optimizer,
        loss: Loss,
        temperature: float,
        tokens_per_device: int,
    ):
        self._model, self._layout = model, layout
        self._loss, self._temperature = loss, temperature
        self._tokens_per_device = tokens_per_device
        self._transformation = optimizer.transformation()
        self._learning_rates = optimizer.learning_rates()
        weights = layout.weights(model.names)
        shardings = state_shardings(model, layout, self._transformation)
        self._zeros = jax.jit(
            lambda: jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), model.shapes),
            out_shardings=weights,
        )
        self._accumulate = jax.jit(
            self._accumulate_traced, donate_argnums=(1,), out_shardings=(weights, layout.replicated)
        )
        self._apply = jax.jit(
            self._apply_traced, donate_argnums=(0,), out_shardings=(shardings, layout.replicated)
        )

    def _accumulate_traced(self, params: Params, gradients: Params, batch: TrainingBatch, counts: Counts):
        def micro_loss(params: Params):
            if self._model.kind is LanguageModel:
                said = token_log_probs(self._model, params, batch.tokens, self._temperature, self._layout)
            else:
                said = token_values(self._model, params, batch.tokens, self._layout)
            return self._loss(said, batch, counts)

        (_, parts), new = jax.value_and_grad(micro_loss, has_aux=True)(params)
        return jax.tree.map(jnp.add, gradients, new), dict(parts)

    def _apply_traced(self, state: TrainState, gradients: Params):
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm)

        def move(operand):
            params, moments = operand
            updates, moments = self._transformation.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments

        params, moments = jax.lax.cond(finite, move, lambda same: same, (state.params, state.optimizer_state))
        skipped = jnp.where(finite, 0, state.skipped + 1)
        # Adam and the schedule count alike: applied updates, not skipped ones.
        done = optax.tree_utils.tree_get_all_with_path(state.optimizer_state, "count")[0][1]
        report = {"grad_norm": norm, "lr": self._learning_rates(done), "skipped": skipped}
        return TrainState(params, moments, state.updates + 1, skipped), report

    def update(self, state: TrainState, batch: TrainingBatch) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Do one optimizer update on one mini-batch of host arrays; takes the state's buffers over.

        Returns the new state and its report: the loss's parts (already mini-batch values), `grad_norm` before
        the clip, `lr`, and `skipped` (updates skipped in a row; 0 when this one was applied). A gradient that
        is not finite leaves weights and moments untouched.
        """
        counts = count_on_host(np.asarray(batch.response_mask))
        gradients, parts = self._zeros(), []
        for micro in plan_micro_batches(batch.lengths, self._tokens_per_device, self._layout.replicas):
            gradients, part = self._accumulate(
                state.params, gradients, self._place(take(batch, micro)), counts
            )
            parts.append(part)
        state, report = self._apply(state, gradients)
        report = dict(report)
        for name in parts[0]:
            report[name] = functools.reduce(jnp.add, [part[name] for part in parts])
        return state, report

    def _place(self, batch: TrainingBatch) -> TrainingBatch:
        return jax.tree.map(
            lambda leaf: jax.device_put(leaf, self._layout.sharding(("batch", None)[: leaf.ndim])), batch
        )

    def epochs(
        self, state: TrainState, batch: TrainingBatch, minibatch_sequences: int, epochs: int, seed: int
    ) -> tuple[TrainState, dict[str, float]]:
        """Pass over a step's sequences `epochs` times, one update per mini-batch, in a seeded new order each.

        Returns the means over updates of every reported value; `skipped_updates` counts this call's.
        """
        reports = []
        for rows in _minibatches(len(batch.lengths), minibatch_sequences, epochs, seed, int(state.updates)):
            state, report = self.update(
                state, jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], batch)
            )
            reports.append(report)
        host = [{name: float(value) for name, value in report.items()} for report in reports]
        skipped = sum(report.pop("skipped") > 0 for report in host)
        means = {name: _finite_mean([report[name] for report in host]) for name in host[0]}
        return state, means | {"skipped_updates": float(skipped)}


def _finite_mean(values: list[float]) -> float:
    """Average what is finite: a skipped update must not hide the figures of the others."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _minibatches(
    sequences: int, minibatch_sequences: int, epochs: int, seed: int, updates_done: int
) -> Iterator[np.ndarray]:
    """Yield row indices of each mini-batch; the order is addressed by (seed, updates done), so it resumes."""
    generator = np.random.default_rng([seed, updates_done])
    for _ in range(epochs):
        order = generator.permutation(sequences)
        for start in range(0, sequences, minibatch_sequences):
            yield order[start : start + minibatch_sequences]
