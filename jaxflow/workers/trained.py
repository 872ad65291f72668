"""What actor, critic and student have in common: one trained model, its optimizer, its files.

Knows no algorithm: the loss is given. Knows no transport.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax

from jaxflow.config import Config, OptimizerConfig
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
from jaxflow.models.transformer import Model, Params
from jaxflow.models.weights_in import ReadReport
from jaxflow.types import UserError

_BASE_FILE = "base.json"


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


@dataclasses.dataclass(frozen=True)
class _Base:
    """Where the weights beside adapters come from: a checkpoint holds what is trained, and this."""

    directory: str  # of saved weights; empty: random ones, of the run's seed

    @classmethod
    def read(cls, checkpoint: Path) -> _Base:
        file = checkpoint / _BASE_FILE
        if not file.is_file():
            raise UserError(
                f"{file}: is not there; {checkpoint} was saved without adapters: set lora.rank to 0"
            )
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, checkpoint: Path) -> None:
        (checkpoint / _BASE_FILE).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


class TrainedModel:
    """A model with its training state on one layout."""

    def __init__(self, trainer: Trainer, max_skipped_updates: int, seed: int, stream: int):
        """Take a trainer over; `seed` and `stream` are where the model's random weights come from."""
        self._trainer, self._seed, self._stream = trainer, seed, stream
        self._model, self._layout = trainer.model, trainer.layout
        self._max_skipped_updates = max_skipped_updates
        self._state: TrainState | None = None
        self._base = _Base("")

    @property
    def params(self) -> Params:
        """Return the float32 masters, beside adapters with the weights that stay as they are."""
        return self._existing_state().params

    @property
    def updates(self) -> int:
        """Return how many optimizer updates the weights have behind them."""
        return int(self._existing_state().updates)

    def _existing_state(self) -> TrainState:
        if self._state is None:
            raise RuntimeError("the model has no weights yet: create, load or restore them first")
        return self._state

    def _begin(self, params: Params, directory: str) -> None:
        self._base = _Base(directory)
        self._state = new_state(self._model, self._layout, self._trainer.transformation, params)

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
        state = self._existing_state()
        self._state, metrics = self._trainer.epochs(
            state, batch, minibatch_sequences, epochs, self._seed, auxiliary
        )
        in_a_row = int(self._state.skipped)
        if in_a_row > self._max_skipped_updates:
            raise UserError(
                f"{in_a_row} optimizer updates in a row had a gradient that is not finite and were skipped; "
                "the weights are those of the last finite update. Lower the learning rate or look at the rewards."
            )
        return metrics

    def save(self, directory: Path) -> None:
        """Write all state that the next update depends on."""
        save_state(directory, self._model, self._existing_state())
        if self._model.adapters is not None and jax.process_index() == 0:
            self._base.write(directory)

    def restore(self, directory: Path) -> None:
        """Continue from a saved state."""
        frozen = {}
        if self._model.adapters is not None:
            self._base = _Base.read(directory)
            frozen = self._model.frozen(self._restored_base())
        transformation = self._trainer.transformation
        self._state = restore_state(directory, self._model, self._layout, transformation, frozen)

    def _restored_base(self) -> Params:
        if not self._base.directory:
            return new_weights(self._model, self._layout, self._seed, self._stream)
        parts = tuple(self._model.frozen(self._model.shapes))
        return load_weights(Path(self._base.directory), self._model.base, self._layout, parts)[0]

    def save_weights(self, directory: Path) -> None:
        """Write the weights alone."""
        save_weights(directory, self._model, self.params)
