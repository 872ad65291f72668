"""Generation: sequences pass through a fixed number of slots, a chunk of tokens at a time.

Between two chunks, finished sequences leave and waiting ones take their slots (continuous batching, as in Orca and
vLLM, without their servers). The host decides (schedule.py), the device computes (slots.py); here the one is made to
follow the other. Knows no algorithm, no text and no reward: token ids in, token ids and log-probs out.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxflow.engine.answers import Answers, joined, part_of
from jaxflow.engine.batching import take
from jaxflow.engine.course import Drawn
from jaxflow.engine.lanes import lanes_of
from jaxflow.engine.rows import Rows, block
from jaxflow.engine.sampling import Sampling, StopTable
from jaxflow.engine.schedule import Preparation, Schedule
from jaxflow.engine.sharding import Layout
from jaxflow.engine.slots import Address, Progress, Queue, Ready, SlotPrograms, Slots
from jaxflow.models.transformer import Model, Params, Unstacked
from jaxflow.types import Prompts, Rollout

CHUNK_STEPS = 32  # tokens between two looks at who has finished
PREFILL_TOKENS = 8192  # padded prompt tokens that go through a replica at once: enough to keep it busy


@dataclasses.dataclass(frozen=True)
class Allowance:
    """What one call may take; looked at between chunks, so that it is passed by less than a chunk."""

    tokens: int  # response tokens that all rows may draw together; 0: as many as they need
    seconds: float  # that may pass on the slowest process; 0: as many as it takes


UNLIMITED = Allowance(0, 0.0)


@dataclasses.dataclass(frozen=True)
class Effort:
    """What calls came to, over all replicas."""

    seconds: float  # as this process saw it
    response_tokens: int
    slot_steps: int  # tokens that the slots could have drawn in the steps that were made
    prefill_tokens: int  # padded

    def __add__(self, other: Effort) -> Effort:
        return Effort(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))


NO_EFFORT = Effort(0.0, 0, 0, 0)


class Generator:
    """Generates responses on a mesh under one generation layout; a process gives and gets its own rows."""

    def __init__(
        self,
        model: Model,
        layout: Layout,
        dtype: str,
        sequences_per_device: int,
        chunk_steps: int = CHUNK_STEPS,
        lanes: int | None = None,
    ):
        """Generate with at most `sequences_per_device` rows of each replica running at a time.

        A device's rows are cut into `lanes`, which run side by side; None: as many as pay off (lanes.py).
        Raises ValueError if there are several lanes and several devices.
        """
        if lanes is not None and lanes > 1 and layout.mesh.size > 1:
            raise ValueError(f"{lanes} lanes on {layout.mesh.size} devices: lanes are of one device")
        self._sequences_per_device, self._lanes = sequences_per_device, lanes
        self._model, self._layout = model, layout
        self._rows = Rows(layout.mesh, layout.axes["batch"])
        self._programs = SlotPrograms(model, layout, dtype, chunk_steps)
        self._effort = NO_EFFORT

    @property
    def programs(self) -> SlotPrograms:
        """Return the programs that it dispatches, to be traced for a plan."""
        return self._programs

    def take_effort(self) -> Effort:
        """Return what the calls since the last time came to."""
        effort, self._effort = self._effort, NO_EFFORT
        return effort

    def unstacked(self, params: Params, keep: Params) -> Unstacked:
        """Return rollout weights as `generate` reads them; their stacks are deleted, but for those to `keep`."""
        return self._programs.unstacked(params, keep)

    def __call__(self, params: Params, *asked: Any, **more: Any) -> Rollout:
        """Generate, as `generate` does, with weights in stacks, which stay: meanwhile layers exist twice."""
        return self.generate(self.unstacked(params, keep=params), *asked, **more)

    def generate(
        self,
        weights: Unstacked,
        prompts: Prompts,
        sampling: Sampling,
        seed: int,
        step: int,
        purpose: int,
        policy_updates: int,
        limits: np.ndarray | None = None,
        stops: StopTable | None = None,
        allowance: Allowance = UNLIMITED,
    ) -> Rollout:
        """Generate one response per row of `prompts`; the rows keep their order and are marked with the weights' age.

        `limits` [B] says how many response tokens each row may have, in place of `sampling.max_response_tokens`
        where it is less. A response also ends with the token that completes a stop string, which `stops` notices.
        When the allowance is spent, rows come back with what they have, nothing perhaps, and are marked as stopped.
        Raises ValueError if a limit is below 1.
        """
        clock = _Clock(allowance, self._rows)
        most = np.full(len(prompts.lengths), sampling.max_response_tokens, np.int32)
        limits = most if limits is None else np.minimum(limits, most)
        everyones = self._rows.gather(np.stack([prompts.lengths, limits, _repeats(prompts)], axis=1))
        if everyones[:, 1].min() < 1:
            raise ValueError("a response has at least one token: a limit is less")
        address = Address(np.uint32(seed), np.int32(step), np.int32(purpose))
        cut = self._in_lanes(prompts, everyones)
        schedules = [
            Schedule(
                *numbers.T,
                blocks=self._rows.blocks,
                slots=-(-self._sequences_per_device // len(cut)),
                prefill_tokens=PREFILL_TOKENS,
                chunk_steps=self._programs.chunk_steps,
                unit=self._programs.groups,
            )
            for _, numbers in cut
        ]
        told = (self._programs, self._rows, weights, sampling, address, stops)
        calls = [
            _Call(*told, lane, given, schedule)
            for lane, ((given, _), schedule) in enumerate(zip(cut, schedules, strict=True))
        ]
        rollouts = _side_by_side([functools.partial(call.run, policy_updates, clock) for call in calls])
        for schedule in schedules:
            drawn = int(schedule.drawn.sum())
            self._effort += Effort(0.0, drawn, schedule.slot_steps, schedule.prefill_tokens)
        self._effort += Effort(clock.seconds, 0, 0, 0)
        return joined(rollouts, sampling.pad_id)

    def _in_lanes(self, prompts: Prompts, numbers: np.ndarray) -> list[tuple[Prompts, np.ndarray]]:
        """Cut a call's rows, and what everyone knows of them, into lanes: blocks of neighbours."""
        total = len(numbers)
        lanes, at_a_time = self._lanes, min(self._sequences_per_device, total)
        if lanes is None:
            lanes = lanes_of(self._model.config, self._layout, at_a_time)
        if lanes == 1:
            return [(prompts, numbers)]
        blocks = [block(total, lanes, lane) for lane in range(lanes)]
        return [(part_of(prompts, rows), numbers[rows]) for rows in blocks if rows.start < rows.stop]


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunk:
    """A chunk on its way."""

    drawn: Drawn
    progress: Progress


class _Call:
    """A lane of a call on its way: what runs on the devices, and what has come back."""

    def __init__(
        self,
        programs: SlotPrograms,
        rows: Rows,
        weights: Unstacked,
        sampling: Sampling,
        address: Address,
        stops: StopTable | None,
        lane: int,
        prompts: Prompts,
        schedule: Schedule,
    ):
        self._programs, self._rows, self._schedule = programs, rows, schedule
        self._weights, self._prompts, self._lane = weights, prompts, lane
        self._sampling, self._address = sampling, address
        self._stops = stops
        self._prepared = programs.prompts(rows.blocks * schedule.places, schedule.width)
        self._slots = programs.slots(rows.blocks * schedule.slots, schedule.positions)
        self._mine = rows.indices(schedule.total)
        self._queue = rows.place(self._queued())
        self._queued_rows = rows.place(self._held(schedule.waiting))
        self._ready: Ready | None = None  # before any prompt is prepared
        self._answers = Answers(prompts, schedule.ends[self._mine], sampling.pad_id)

    def run(self, policy_updates: int, clock: _Clock) -> Rollout:
        """Generate until no row waits and none runs, or until there is no more time or tokens for it."""
        schedule, steps = self._schedule, self._programs.chunk_steps
        flight: collections.deque[_Chunk] = collections.deque()
        while schedule.waiting.any() or schedule.longest_left > len(flight) * steps:
            if clock.is_over(self._lane, int(schedule.drawn.sum())):
                break
            self._prepare()
            size = schedule.resize(len(flight))
            if size is not None:
                origins = self._rows.place(self._held(size.origins))
                self._slots = self._programs.resize(self._let_go(), origins, size.positions)
            flight.append(self._decode())
            # Where nobody waits nothing depends on how a chunk ends: the next is on its way before it is read.
            while len(flight) > (0 if schedule.waiting.any() or clock.runs else 1):
                self._collect(flight.popleft())
        while flight:
            self._collect(flight.popleft())
        mine = self._mine
        cut = ~schedule.ended & (schedule.drawn < schedule.ends - schedule.prompt_lengths)
        return self._answers.rollout(schedule.drawn[mine], schedule.ended[mine], cut[mine], policy_updates)

    def _prepare(self) -> None:
        """Send prompts through prefill as the schedule says, and let their rows start."""
        preparation = self._schedule.prepare()
        if preparation is None:
            return
        while preparation is not None:
            self._prefill(preparation)
            preparation = self._schedule.prepare()
        self._ready = self._rows.place(Ready(*map(self._held, self._schedule.ready)))

    def _prefill(self, preparation: Preparation) -> None:
        mine = self._rows.local(preparation.rows, self._schedule.total)
        tokens = take(self._prompts.tokens, mine, preparation.padded_length)
        placed = self._rows.place((tokens, self._held(preparation.places)))
        self._prepared = self._programs.prefill(self._weights, self._prepared, *placed)

    def _queued(self) -> Queue:
        """Return this process's rows as their replicas' queues have them."""
        mine, prompts = self._rows.local(self._schedule.queue, self._schedule.total), self._prompts
        row = np.maximum(mine, 0)
        positions = prompts.lengths[row] - 1
        return Queue(
            last=prompts.tokens[row, positions],
            positions=positions,
            ends=self._schedule.ends[self._mine][row],
            sequence_ids=prompts.sequence_ids[row],
            own_seeds=prompts.own_seeds[row],
        )

    def _let_go(self) -> Slots:
        """Hand the slots over, so that nothing here keeps their memory."""
        slots, self._slots = self._slots, None
        return slots

    def _decode(self) -> _Chunk:
        """Let rows start that are ready, if any may be left, and dispatch a chunk."""
        if self._schedule.waiting.any():
            self._slots = self._programs.start(self._let_go(), self._prepared, self._queue, self._ready)
        self._slots, drawn, progress = self._programs.decode(
            self._weights, self._let_go(), self._queued_rows, self._address, self._stops, self._sampling
        )
        return _Chunk(drawn, progress)

    def _collect(self, chunk: _Chunk) -> None:
        """Read a chunk and keep what it drew."""
        progress, schedule = jax.tree.map(np.asarray, chunk.progress), self._schedule
        blocks = self._rows.blocks
        rows = self._rows.local(schedule.rows_of(progress.numbers.reshape(blocks, -1)), schedule.total)
        starts = (schedule.prompt_lengths + schedule.drawn)[self._mine]
        counts = self._held(progress.counts.reshape(blocks, -1))
        self._answers.add(rows, starts, counts, self._rows.fetch(chunk.drawn))
        schedule.record(progress)

    def _held(self, table: np.ndarray) -> np.ndarray:
        """Return this process's share of a table of all replicas [blocks, …], one behind the other."""
        return table[list(self._rows.held)].reshape(-1)


class _Clock:
    """Says, to all processes alike, when an allowance is spent."""

    def __init__(self, allowance: Allowance, rows: Rows):
        self._allowance, self._rows = allowance, rows
        self._started = time.monotonic()
        self._tokens: dict[int, int] = {}  # that each lane has
        self.runs = allowance.tokens > 0 or allowance.seconds > 0

    @property
    def seconds(self) -> float:
        """Return how many have passed."""
        return time.monotonic() - self._started

    def is_over(self, lane: int, tokens: int) -> bool:
        """Return whether a lane's tokens and others' are enough, or any process has waited long enough. Collective."""
        self._tokens[lane] = tokens
        if 0 < self._allowance.tokens <= sum(list(self._tokens.values())):
            return True
        limit = self._allowance.seconds
        return limit > 0 and self._rows.any(self.seconds >= limit)


def _side_by_side(calls: Sequence[Callable[[], Rollout]]) -> list[Rollout]:
    """Run calls, each in a thread of its own where there are several, and return what they return."""
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(len(calls)) as threads:
        return [running.result() for running in [threads.submit(call) for call in calls]]


def _repeats(prompts: Prompts) -> np.ndarray:
    """Return of each row whether its prompt is that of the row before it, to the last token."""
    column = np.arange(prompts.tokens.shape[1])[None, :]
    real = np.where(column < prompts.lengths[:, None], prompts.tokens, -1)
    same = np.zeros(len(real), bool)
    same[1:] = (real[1:] == real[:-1]).all(axis=1)
    return same
