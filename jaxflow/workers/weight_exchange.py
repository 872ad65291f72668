"""Generation on a pool of its own: how the actor's weights get there, and the actor as a dataflow then sees it.

Every process of the actor's pool hands every process of the generator's one message per bucket of weights; messages
travel as the rows of a batch do, by reference, from worker to worker. Knows roles by their methods; the arithmetic of
shards is the engine's.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxflow.batch_algebra import Derived
from jaxflow.config import Config
from jaxflow.engine.exchange import Arrivals, Message, Route, leaf_shards, send
from jaxflow.engine.sharding import generation_layout
from jaxflow.engine.shards import Shard
from jaxflow.engine.transition import BUCKET_BYTES
from jaxflow.models.transformer import LanguageModel, Model, Params, Unstacked, describe
from jaxflow.types import Future, Metrics, Prompts, Rollout, WeightsMoved
from jaxflow.workers.group import WorkerGroup
from jaxflow.workers.place import Place
from jaxflow.workers.protocol import exposed
from jaxflow.workers.sampler import Sampler
from jaxflow.workers.transfer import (
    ONE_TO_ALL,
    THREE_D_ALL_MICRO_DP,
    Grid,
    Ranges,
    RowsOf,
    TransferProtocol,
    from_all,
)

_ACTOR, _GENERATOR = "actor", "generator"


def _of_senders(grid: Grid, rows: int) -> tuple[Ranges, ...]:
    """Row p·Q + q is the message of process p of P senders to process q of Q receivers: a sender's are a run."""
    receivers = rows // grid.processes
    return tuple((range(p * receivers, (p + 1) * receivers),) for p in range(grid.processes))


def _of_receivers(grid: Grid, rows: int) -> tuple[Ranges, ...]:
    """A receiver's messages are every Q-th row."""
    receivers = grid.processes
    return tuple(tuple(range(row, row + 1) for row in range(q, rows, receivers)) for q in range(receivers))


WEIGHTS_OUT = TransferProtocol("WEIGHTS_OUT", _of_senders, lambda grid, rows: RowsOf(_of_senders(grid, rows)))
WEIGHTS_IN = TransferProtocol("WEIGHTS_IN", _of_receivers, from_all)


class Outgoing:
    """The actor's end: cuts its weights into messages."""

    def __init__(self, model: Model, shardings: Any, dtype: str):
        """Take weights of `model` in these shardings; they leave in `dtype`."""
        self._dtype = dtype
        self.shards = leaf_shards(_ACTOR, model.shapes, shardings)
        self._route: Route | None = None

    def address(self, targets: list[tuple[Shard, ...]]) -> int:
        """Plan the way to these shards; return the number of buckets."""
        self._route = Route(self.shards, targets, np.dtype(self._dtype).itemsize, BUCKET_BYTES)
        return len(self._route.buckets)

    def messages(self, params: Params, bucket: int) -> tuple[Message, ...]:
        """Return one message for each process of the generator."""
        return send(self._route, bucket, jax.tree.leaves(params), self._dtype)


class RolloutGenerator:
    """Generates with the weights that the actor sends from its own pool."""

    def __init__(self, config: Config, derived: Derived, place: Place):
        self._place, self._dtype = place, config.rollout.dtype
        self._model = describe(derived.actor_model, LanguageModel)
        layout = generation_layout(place.mesh, self._model.config)
        self._shardings = layout.weights(self._model.names)
        self._shards = leaf_shards(_GENERATOR, self._model.shapes, self._shardings)
        self._sampler = Sampler(config, self._model, layout)
        self._arrivals: Arrivals | None = None
        self._weights: Unstacked | None = None  # None: they have changed since
        self._updates = 0

    def _arrived(self) -> Unstacked:
        if self._weights is None:
            self._weights = self._sampler.unstacked(self._arrivals.take(), keep={})
        return self._weights

    @exposed("load", ONE_TO_ALL, replicated=True)
    def weight_shards(self) -> tuple[tuple[Shard, ...], ...]:
        """Return where the shards of each weight lie."""
        return self._shards

    @exposed("load", ONE_TO_ALL)
    def expect(self, sources: list[tuple[Shard, ...]]) -> None:
        """Plan the way from these shards."""
        route = Route(sources, self._shards, np.dtype(self._dtype).itemsize, BUCKET_BYTES)
        self._arrivals = Arrivals(route, self._model.shapes, self._shardings, self._dtype)

    @exposed("transition", WEIGHTS_IN, replicated=True)
    def receive(self, messages: tuple[Message, ...], bucket: int, updates: int) -> WeightsMoved:
        """Make one bucket of weights of the senders' messages; `updates` is the age of the weights."""
        self._weights = None
        with self._place.span("transition") as span:
            span.bytes = self._arrivals.receive(bucket, messages)
        self._updates = updates
        return WeightsMoved(span.bytes, span.seconds)

    @exposed("gen", THREE_D_ALL_MICRO_DP, by_parts=True)
    def generate(self, prompts: Prompts) -> Rollout:
        """Sample one response per row at the training temperature."""
        return self._sampler.train(self._arrived(), prompts, self._updates)

    @exposed("gen_max", THREE_D_ALL_MICRO_DP, by_parts=True)
    def generate_greedy(self, prompts: Prompts) -> Rollout:
        """Give each row the response that is likeliest token by token."""
        return self._sampler.greedy(self._arrived(), prompts, self._updates)

    @exposed("testing", THREE_D_ALL_MICRO_DP, by_parts=True)
    def generate_validation(self, prompts: Prompts) -> Rollout:
        """Sample one response per row as validation asks."""
        return self._sampler.validate(self._arrived(), prompts, self._updates)

    # No part of the stage `gen`, whose calls are counted as rollouts.
    @exposed("transition", ONE_TO_ALL, replicated=True)
    def take_figures(self) -> Metrics:
        """Return the rate and the waste of generation since the last time."""
        return self._sampler.take_figures()


class ServedActor:
    """The actor as a dataflow sees it where another pool generates for it: one role, two groups.

    Weights are sent before the first generation after a change of them, as futures like everything else: a bucket
    is received while the next one is cut.
    """

    def __init__(self, actor: WorkerGroup, generator: WorkerGroup):
        """Introduce the two groups to each other."""
        self.role, self.methods = actor.role, actor.methods
        self._actor, self._generator = actor, generator
        own = vars(type(self))
        self.__dict__.update({name: vars(actor)[name] for name in actor.methods if name not in own})
        # Lists, for these are no rows of a batch.
        self._buckets = actor.address(list(generator.weight_shards().result())).result()
        generator.expect(list(actor.weight_shards().result())).result()
        self._tickets = tuple(range(actor.processes * generator.processes))
        self._stale = True
        self._moves: list[Future[WeightsMoved]] = []

    def generate(self, prompts: Future[Prompts]) -> Future[Rollout]:
        """Sample one response per row on the generator's pool."""
        return self._served().generate(prompts)

    def generate_greedy(self, prompts: Future[Prompts]) -> Future[Rollout]:
        """Give each row its likeliest response, on the generator's pool."""
        return self._served().generate_greedy(prompts)

    def generate_validation(self, prompts: Future[Prompts]) -> Future[Rollout]:
        """Sample one response per row as validation asks, on the generator's pool."""
        return self._served().generate_validation(prompts)

    def update(self, *batches: Any) -> Future[Metrics]:
        """Run one step's policy updates."""
        self._stale = True
        return self._actor.update(*batches)

    def load(self, directory: str) -> Future[Any]:
        """Start from saved weights or a checkpoint."""
        self._stale = True
        return self._actor.load(directory)

    def restore(self, directory: str) -> Future[Any]:
        """Continue from what `save` wrote."""
        self._stale = True
        return self._actor.restore(directory)

    def take_figures(self) -> dict[str, float]:
        """Return what generation came to since the last time, and what sending weights took.

        Under the names of the actor's own generation, and of a switch inside one pool.
        """
        moved = [move.result() for move in self._moves]
        self._moves = []
        generated = self._generator.take_figures().result()
        if not moved:
            return generated
        return generated | {
            "transition/seconds": sum(one.seconds for one in moved),
            "transition/received_bytes_per_device": float(sum(one.bytes_per_device for one in moved)),
        }

    def _served(self) -> WorkerGroup:
        """Return the generator, with the actor's weights on their way to it."""
        if self._stale:
            age = self._actor.weights_age()
            self._moves += [
                self._generator.receive(self._actor.send_weights(self._tickets, bucket), bucket, age)
                for bucket in range(self._buckets)
            ]
            self._stale = False
        return self._generator
