"""Training one model on one mesh: micro-batches, accumulation by global counts, one guarded update.

Knows no algorithm: the loss is a function of what the model says of a micro-batch, the micro-batch, and the
mini-batch's global counts, so the update does not depend on how rows are cut into micro-batches or devices.
A process gives its own rows of a batch; what it must know of the others' are lengths and counts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Traced
from jaxtyping import Array, Bool, Int

from jaxflow.engine.balance import Load, balance_loss, choice_notes, choices, counted_tokens, load_notes
from jaxflow.engine.batching import MicroBatch, plan_blocks, sequences_per_row, take
from jaxflow.engine.optimizer import Optimizer
from jaxflow.engine.pipeline import bubble
from jaxflow.engine.rows import Rows
from jaxflow.engine.score import hidden_states, noted_log_probs, noted_values
from jaxflow.engine.sharding import Layout
from jaxflow.engine.state import TrainState, abstract_state, state_shardings
from jaxflow.models.adapters import join
from jaxflow.models.transformer import LanguageModel, Model, Params
from jaxflow.types import Counts, TokenLogProbs


class TrainingBatch(Protocol):
    """What every batch to train on has, whatever else its loss reads."""

    tokens: Int[Array, "B *N T"]  # a row may hold N sequences that its loss reads together
    lengths: Int[Array, "B"]  # of the longest sequence of each row
    response_mask: Bool[Array, "B *N T"]


Loss = Callable[[TokenLogProbs | Array, Any, Counts], tuple[Array, Mapping[str, Array]]]
"""(what the model says, micro-batch, mini-batch counts) -> (scalar, named scalars); both add over micro-batches."""


def count(response_tokens: Int[np.ndarray, "b"]) -> Counts:
    """Count the response tokens and sequences of a mini-batch; at least one of each, to divide by."""
    tokens, sequences = int(response_tokens.sum()), int((response_tokens > 0).sum())
    return Counts(np.int32(max(tokens, 1)), np.int32(max(sequences, 1)))


@dataclasses.dataclass(frozen=True)
class Auxiliary:
    """A second batch, of as many rows as the first: at every update its loss is added, over its own counts."""

    batch: TrainingBatch
    loss: Loss  # hashable: it is part of a compiled program


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What every process knows of all rows of a batch."""

    lengths: Int[np.ndarray, "B"]
    response_tokens: Int[np.ndarray, "B"]
    counted_tokens: Int[np.ndarray, "B"]  # by which the experts' load is measured


_Lesson = tuple[TrainingBatch, _Sizes, Loss]


class Trainer:
    """Runs optimizer updates of one model under one loss.

    `reference`, where set, are frozen weights of the same decoder on the same layout: the model then tells its loss
    how far it is from them. With a `balance_coefficient` above 0 the load of a mixture's experts is evened out as well
    (balance.py): a forward pass counts the choices of a mini-batch before the passes that learn from it.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        optimizer: Optimizer,
        loss: Loss,
        temperature: float,
        tokens_per_device: int,
        balance_coefficient: float = 0.0,
    ):
        self.model, self.layout = model, layout
        self.transformation = optimizer.transformation()
        self._loss, self._temperature = loss, temperature
        self._tokens_per_device, self._balance = tokens_per_device, balance_coefficient
        self.reference: Params | None = None
        self._rows = Rows(layout.mesh, layout.axes["batch"])
        self._learning_rates = optimizer.learning_rates()
        weights = model.trained(layout.weights(model.names))
        shardings = state_shardings(model, layout, self.transformation)
        self._zeros = jax.jit(
            lambda: jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), model.trained(model.shapes)),
            out_shardings=weights,
        )
        self._accumulate = jax.jit(
            self._accumulate_traced,
            donate_argnums=(1,),
            static_argnums=(4,),
            out_shardings=(weights, layout.replicated),
        )
        self._measure = jax.jit(self._loss_of, static_argnums=(3,), out_shardings=layout.replicated)
        self._choices = jax.jit(self._choices_of, out_shardings=layout.replicated)
        self._apply = jax.jit(
            self._apply_traced, donate_argnums=(0,), out_shardings=(shardings, layout.replicated)
        )

    def _loss_of(
        self,
        params: Params,
        batch: TrainingBatch,
        counts: Counts,
        loss: Loss,
        reference: Params | None = None,
        load: Load | None = None,
    ):
        notes = None if load is None else load_notes(load, self.model.config)
        asked = (self.model, params, batch.tokens)
        if self.model.kind is LanguageModel:
            said, noted = noted_log_probs(*asked, self._temperature, self.layout, reference, notes)
        else:
            said, noted = noted_values(*asked, self.layout, notes)
        value, parts = loss(said, batch, counts)
        if load is None:
            return value, dict(parts)
        balance = balance_loss(noted, batch.response_mask, load, self.model.config)
        return value + self._balance * balance, {**parts, "load_balancing_loss": balance}

    def _choices_of(self, params: Params, batch: TrainingBatch) -> Int[Array, "E"]:
        module, tokens = self.model.bind(params), batch.tokens.reshape(-1, batch.tokens.shape[-1])
        _, noted = hidden_states(module, tokens, self.layout, choice_notes(self.model.config))
        return choices(noted.reshape(*batch.tokens.shape, -1), batch.response_mask)

    def _accumulate_traced(
        self,
        params: Params,
        gradients: Params,
        batch: TrainingBatch,
        counts: Counts,
        loss: Loss,
        reference: Params | None,
        load: Load | None,
    ):
        def loss_of(trained: Params):
            whole = join(trained, self.model.frozen(params))
            return self._loss_of(whole, batch, counts, loss, reference, load)

        (_, parts), new = jax.value_and_grad(loss_of, has_aux=True)(self.model.trained(params))
        return jax.tree.map(jnp.add, gradients, new), parts

    def _apply_traced(self, state: TrainState, gradients: Params):
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm)

        before = (self.model.trained(state.params), state.optimizer_state)
        updates, moments = self.transformation.update(gradients, state.optimizer_state, before[0])
        after = (optax.apply_updates(before[0], updates), moments)
        # Chosen number by number, old and new fit in one fusion that writes where it read. Out of a branch on a
        # GPU all would come in buffers of their own, 12 bytes for each weight.
        trained, moments = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        # Adam and the schedule count alike: applied updates, not skipped ones.
        done = optax.tree_utils.tree_get_all_with_path(state.optimizer_state, "count")[0][1]
        report = {"grad_norm": norm, "lr": self._learning_rates(done), "skipped": skipped}
        params = join(trained, self.model.frozen(state.params))
        return TrainState(params, moments, state.updates + 1, skipped), report

    def trace(self, batch: TrainingBatch) -> tuple[Traced, Traced]:
        """Trace the two programs of an update, accumulate and apply, for arrays of these shapes; none need exist."""
        state = abstract_state(self.model, self.layout, self.transformation)
        gradients = jax.tree.map(
            lambda leaf: leaf.update(dtype=jnp.float32), self.model.trained(state.params)
        )
        number = jax.ShapeDtypeStruct((), jnp.int32)
        asked = (batch, Counts(number, number), self._loss, self.reference)
        often = jax.ShapeDtypeStruct((self.model.config.experts,), jnp.int32)
        load = Load(often, number) if self._balance > 0.0 else None
        return (
            self._accumulate.trace(state.params, gradients, *asked, load),
            self._apply.trace(state, gradients),
        )

    def update(self, state: TrainState, batch: TrainingBatch) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Do one optimizer update on one mini-batch of host arrays; takes the state's buffers over.

        Returns the new state and its report: the loss's parts (already mini-batch values), `grad_norm` before
        the clip, `lr`, and `skipped` (updates skipped in a row; 0 when this one was applied); with stages also
        `pipeline_bubble`. A gradient that is not finite leaves weights and moments untouched.
        """
        sizes = self._gather_sizes(batch)
        return self._update(state, [(batch, sizes, self._loss)], np.arange(len(sizes.lengths)))

    def _gather_sizes(self, batch: TrainingBatch) -> _Sizes:
        within = tuple(range(1, batch.response_mask.ndim))
        response_tokens = np.sum(batch.response_mask, axis=within, dtype=np.int32)
        counted = counted_tokens(np.asarray(batch.response_mask))
        numbers = (np.asarray(batch.lengths, np.int32), response_tokens, counted)
        return _Sizes(*self._rows.gather(np.stack(numbers, axis=1)).T)

    def _planned(
        self, batch: TrainingBatch, sizes: _Sizes, members: Int[np.ndarray, "b"]
    ) -> list[MicroBatch]:
        """Cut some rows of a whole batch into micro-batches."""
        budget = self._tokens_per_device // sequences_per_row(batch.tokens)
        return plan_blocks(sizes.lengths, self._rows.split(members, len(sizes.lengths)), budget)

    def _placed(self, batch: TrainingBatch, micro: MicroBatch, total: int) -> TrainingBatch:
        """Put a micro-batch of a whole batch of `total` rows onto the devices."""
        return self._rows.place(take(batch, self._rows.local(micro.rows, total), micro.padded_length))

    def _update(
        self, state: TrainState, lessons: Sequence[_Lesson], members: Int[np.ndarray, "b"]
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Update on some rows of each whole batch, of which this process holds its blocks'."""
        gradients, parts, passes = self._zeros(), list[Mapping[str, Array]](), list[MicroBatch]()
        for batch, sizes, loss in lessons:
            counts = count(sizes.response_tokens[members])
            planned = self._planned(batch, sizes, members)
            passes += planned
            compared, load = None, None
            if loss is self._loss:
                compared, load = self.reference, self._load(state.params, batch, sizes, members, planned)
            for micro in planned:
                placed = self._placed(batch, micro, len(sizes.lengths))
                gradients, part = self._accumulate(
                    state.params, gradients, placed, counts, loss, compared, load
                )
                parts.append(part)
        state, report = self._apply(state, gradients)
        report = dict(report)
        for name in {name: None for part in parts for name in part}:
            report[name] = functools.reduce(jnp.add, [part[name] for part in parts if name in part])
        if self.layout.stages > 1:
            report["pipeline_bubble"] = np.float32(bubble(passes, self.layout.stages))
        return state, report

    def _load(
        self,
        params: Params,
        batch: TrainingBatch,
        sizes: _Sizes,
        members: Int[np.ndarray, "b"],
        planned: Sequence[MicroBatch],
    ) -> Load | None:
        """Measure how a mini-batch's tokens spread over the experts; None where nobody evens that out."""
        if self._balance == 0.0:
            return None
        placed = (self._placed(batch, micro, len(sizes.lengths)) for micro in planned)
        often = functools.reduce(jnp.add, [self._choices(params, one) for one in placed])
        return Load(often, np.int32(max(int(sizes.counted_tokens[members].sum()), 1)))

    def measure(self, params: Params, batch: TrainingBatch) -> dict[str, float]:
        """Return the loss's parts over a whole batch under these weights; nothing is learnt from it."""
        sizes = self._gather_sizes(batch)
        counts, everyone = count(sizes.response_tokens), np.arange(len(sizes.lengths))
        planned = self._planned(batch, sizes, everyone)
        placed = (self._placed(batch, micro, len(everyone)) for micro in planned)
        said = [self._measure(params, one, counts, self._loss)[1] for one in placed]
        return {name: float(sum(float(parts[name]) for parts in said)) for name in said[0]}

    def epochs(
        self,
        state: TrainState,
        batch: TrainingBatch,
        minibatch_sequences: int,
        epochs: int,
        seed: int,
        auxiliary: Auxiliary | None = None,
    ) -> tuple[TrainState, dict[str, float]]:
        """Pass over a step's sequences `epochs` times, one update per mini-batch, in a seeded new order each.

        Each mini-batch takes the same rows of an auxiliary batch along. Returns the means over updates of every
        reported value; `skipped_updates` counts this call's.
        """
        reports, sizes = [], self._gather_sizes(batch)
        lessons: list[_Lesson] = [(batch, sizes, self._loss)]
        if auxiliary is not None:
            lessons.append((auxiliary.batch, self._gather_sizes(auxiliary.batch), auxiliary.loss))
        for members in minibatches(len(sizes.lengths), minibatch_sequences, epochs, seed, int(state.updates)):
            state, report = self._update(state, lessons, members)
            reports.append(report)
        host = [{name: float(value) for name, value in report.items()} for report in reports]
        skipped = sum(report.pop("skipped") > 0 for report in host)
        means = {name: _finite_mean([report[name] for report in host]) for name in host[0]}
        return state, means | {"skipped_updates": float(skipped)}


def _finite_mean(values: list[float]) -> float:
    """Average what is finite: a skipped update must not hide the figures of the others."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def minibatches(
    sequences: int, minibatch_sequences: int, epochs: int, seed: int, updates_done: int
) -> Iterator[Int[np.ndarray, "b"]]:
    """Yield the rows of each mini-batch, ascending: ⌈sequences / minibatch_sequences⌉ = m of them per epoch.

    Each run of m neighbouring rows gives one row to each mini-batch, in a random order. Rows stay on the devices
    that hold them, and a mini-batch that drew from all rows freely would leave some devices with more to do than
    others; this one asks the same of every block of rows. Its members depend on (seed, updates done) alone: not
    on the mesh, and the same after a resume.
    """
    generator = np.random.default_rng([seed, updates_done])
    count = -(-sequences // minibatch_sequences)
    runs = np.tile(np.arange(count), (-(-sequences // count), 1))
    for _ in range(epochs):
        assigned = generator.permuted(runs, axis=1).reshape(-1)[:sequences]
        for index in range(count):
            yield np.flatnonzero(assigned == index)
