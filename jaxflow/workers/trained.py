"""What actor, critic and student have in common: one trained model, its optimizer, its files.

Knows no algorithm: the loss is given. Knows no transport.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from jaxflow.config import Config, OptimizerConfig
from jaxflow.engine.adapter_files import AdapterNote, read_note, write_note
from jaxflow.engine.offload import to_devices, to_host
from jaxflow.engine.optimizer import Optimizer
from jaxflow.engine.sharding import Layout
from jaxflow.engine.state import (
    TrainState,
    load_weights,
    new_head,
    new_state,
    new_weights,
    restore_state,
    save_state,
    save_weights,
    with_adapters,
)
from jaxflow.engine.train import Auxiliary, Loss, Trainer, TrainingBatch
from jaxflow.engine.transition import transition
from jaxflow.models.transformer import Model, Params
from jaxflow.models.weights_in import ReadReport
from jaxflow.types import UserError
from jaxflow.workers.place import Place

_ADAPTERS = "adapters"  # folder of a checkpoint


def optimizer_of(config: OptimizerConfig, total_updates: int) -> Optimizer:
    """Return the engine's optimizer for these settings and a run of `total_updates` updates."""
    numbers = dataclasses.asdict(config)
    del numbers["max_skipped_updates"]
    return Optimizer(**numbers, total_updates=total_updates)


def taught(
    config: Config, layout: Layout, model: Model, loss: Loss, learning_rate: float, steps: int, stream: int
) -> TrainedModel:
    """Return a model that learns before the first reinforcement-learning step, at a constant rate."""
    settings = OptimizerConfig(learning_rate=learning_rate, schedule="constant")
    tokens_per_device = config.actor.microbatch_tokens_per_device
    trainer = Trainer(model, layout, optimizer_of(settings, steps), loss, 1.0, tokens_per_device)
    return TrainedModel(trainer, settings.max_skipped_updates, config.run.seed, stream)


class TrainedModel:
    """A model with its training state on one layout."""

    def __init__(
        self, trainer: Trainer, max_skipped_updates: int, seed: int, stream: int, place: Place | None = None
    ):
        """Take a trainer over; `seed` and `stream` are where the model's random weights come from.

        Where `place` says so, the optimizer's moments wait in host memory between updates and saves.
        """
        self._place = place
        self._trainer, self._seed, self._stream = trainer, seed, stream
        self._model, self._layout = trainer.model, trainer.layout
        self._max_skipped_updates = max_skipped_updates
        self._state: TrainState | None = None
        self._base = ""  # directory of the weights beside adapters; empty: random ones
        # Frozen weights of the same decoder, where someone compares with them
        self.reference: Params | None = None

    @property
    def params(self) -> Params:
        """Return the float32 masters, beside adapters with the weights that stay as they are."""
        return self._existing_state().params

    def params_in(self, layout: Layout) -> Params:
        """Return the float32 masters in a layout: as they are in their own, a copy in another."""
        if layout == self._layout:
            return self.params
        return transition(self.params, layout.weights(self._model.names), "float32")[0]

    @property
    def updates(self) -> int:
        """Return how many optimizer updates the weights have behind them."""
        return int(self._existing_state().updates)

    def _existing_state(self) -> TrainState:
        if self._state is None:
            raise RuntimeError("the model has no weights yet: create, load or restore them first")
        return self._state

    def _begin(self, params: Params, directory: str) -> None:
        self._base = directory
        self._park(new_state(self._model, self._layout, self._trainer.transformation, params))

    @property
    def _offloads(self) -> bool:
        return self._place is not None and self._place.offload

    def _park(self, state: TrainState) -> None:
        """Keep a state; its moments go where they wait."""
        self._state = state
        if self._offloads:
            moments, moved = to_host(state.optimizer_state)
            self._state = dataclasses.replace(state, optimizer_state=moments)
            self._place.note_offload(moved)

    def _at_hand(self) -> TrainState:
        """Return the state with all of it on the devices; whoever asks parks it, or what became of it, again."""
        state = self._existing_state()
        if not self._offloads:
            return state
        moments, moved = to_devices(state.optimizer_state)
        self._place.note_offload(moved)
        return dataclasses.replace(state, optimizer_state=moments)

    def _with_adapters(self, params: Params) -> Params:
        return with_adapters(self._model, self._layout, params, self._seed, self._stream)

    def create(self) -> None:
        """Start from random weights."""
        self._begin(new_weights(self._model, self._layout, self._seed, self._stream), "")

    def load(self, directory: Path) -> ReadReport | None:
        """Start from weights of either kind; return what reading a checkpoint took."""
        parts = tuple(self._model.shapes)
        params, report = load_weights(directory, self._model.base, self._layout, parts)
        self._begin(self._with_adapters(params), str(directory))
        return report

    def load_reference(self, directory: Path, for_loss: bool) -> ReadReport | None:
        """Read frozen weights of the same decoder, with which the loss compares where asked; say what reading took."""
        base = self._model.base
        self.reference, report = load_weights(directory, base, self._layout, tuple(base.shapes))
        if for_loss:
            self._trainer.reference = self.reference
        return report

    def load_backbone(self, directory: Path) -> ReadReport | None:
        """Start from the weights of another role under a head of its own; return what reading a checkpoint took."""
        backbone, report = load_weights(directory, self._model.base, self._layout, ("backbone",))
        head = new_head(self._model, self._layout, self._seed, self._stream)
        self._begin(self._with_adapters({**backbone, **head}), str(directory))
        return report

    def update(
        self,
        batch: TrainingBatch,
        minibatch_sequences: int,
        epochs: int,
        auxiliary: Auxiliary | None = None,
    ) -> dict[str, float]:
        """Run a step's updates and return their mean metrics; an auxiliary batch's loss is added to each.

        Raises UserError when more than `max_skipped_updates` updates in a row were not finite; the weights
        then are those of the last finite one, ready to be saved.
        """
        state, metrics = self._trainer.epochs(
            self._at_hand(), batch, minibatch_sequences, epochs, self._seed, auxiliary
        )
        self._park(state)
        in_a_row = int(self._state.skipped)
        if in_a_row > self._max_skipped_updates:
            raise UserError(
                f"{in_a_row} optimizer updates in a row had a gradient that is not finite and were skipped; "
                "the weights are those of the last finite update. Lower the learning rate or look at the rewards."
            )
        return metrics

    def measure(self, batch: TrainingBatch) -> dict[str, float]:
        """Return the parts of the loss over a batch, and learn nothing."""
        return self._trainer.measure(self._existing_state().params, batch)

    def save(self, directory: Path) -> None:
        """Write all state that the next update depends on."""
        state = self._at_hand()
        save_state(directory, self._model, state)
        self._park(state)
        if self._model.adapters is not None and jax.process_index() == 0:
            write_note(directory / _ADAPTERS, AdapterNote(self._model.adapters, self._base))

    def restore(self, directory: Path) -> None:
        """Continue from a saved state."""
        frozen = {}
        if self._model.adapters is not None:
            note = read_note(directory / _ADAPTERS)
            if note.adapters != self._model.adapters:
                raise UserError(
                    f"{directory}: was saved with {note.adapters}, the config asks {self._model.adapters}"
                )
            self._base = note.base
            frozen = self._model.frozen(self._restored_base())
        transformation = self._trainer.transformation
        self._park(restore_state(directory, self._model, self._layout, transformation, frozen))

    def _restored_base(self) -> Params:
        if not self._base:
            return new_weights(self._model, self._layout, self._seed, self._stream)
        parts = tuple(self._model.frozen(self._model.shapes))
        return load_weights(Path(self._base), self._model.base, self._layout, parts)[0]

    def save_weights(self, directory: Path) -> None:
        """Write the weights alone."""
        save_weights(directory, self._model, self.params)
