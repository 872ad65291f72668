"""How sequences move on by one token: what the device knows of them, and what drawing the next one does to it.

Knows no cache, no layout and no schedule: hidden states in, sequences out.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxflow.engine.sampling import Sampling, StopTable, ends, sample
from jaxflow.models.transformer import LanguageModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """What the device knows of the sequence in each slot; of a slot that is not running, nothing is read."""

    last: Int[Array, "B"]  # the token that is decoded next; the cache holds what stands before it
    positions: Int[Array, "B"]  # where it stands
    ends: Int[Array, "B"]  # the first position that the sequence may not reach
    sequence_ids: Int[Array, "B"]  # the address of its randomness
    own_seeds: Int[Array, "B"]  # in place of the run's seed, the step and the sequence id; -1: none
    drawn: Int[Array, "B"]  # tokens of its response
    matched: Int[Array, "B"]  # state of the automaton that notices stop strings
    running: Bool[Array, "B"]  # it takes more tokens
    ended: Bool[Array, "B"]  # it ended by itself: with an end token or a stop string


SEQUENCE_BYTES = 7 * 4 + 2  # of one slot's numbers above


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """The tokens of one chunk: of slot b the first `counts[b]` of each row."""

    tokens: Int[Array, "B C"]
    log_probs: Float[Array, "B C"]
    behaviour_log_probs: Float[Array, "B C"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Course:
    """What a chunk's loop knows of some rows beside their cache."""

    sequences: Sequences
    keys: Array  # [B], of their randomness
    drawn: Drawn
    counts: Int[Array, "B"]
    step: Int[Array, ""]  # tokens drawn since the chunk began


def moved_on_by_a_token(
    course: Course,
    hidden: Float[Array, "B D"],
    module: LanguageModel,
    sampling: Sampling,
    stops: StopTable | None,
) -> Course:
    """Draw each sequence's next token from the hidden state of its last one."""
    now, column = course.sequences, course.drawn
    new = sample(module.logits(hidden), course.keys, now.positions + 1, now.drawn, sampling)
    wholes = (column.tokens, column.log_probs, column.behaviour_log_probs)
    drawn = Drawn(
        *(
            jax.lax.dynamic_update_slice(whole, one[:, None], (0, course.step))
            for whole, one in zip(wholes, new, strict=True)
        )
    )
    moved, counts = _moved_on(now, new[0], sampling, stops), course.counts + now.running
    return Course(moved, course.keys, drawn, counts, course.step + 1)


def _moved_on(
    now: Sequences, token: Int[Array, "B"], sampling: Sampling, stops: StopTable | None
) -> Sequences:
    """Return the sequences one token on; those that do not run decode their last token again and again."""
    over, matched = ends(token, now.drawn, now.matched, sampling, stops)
    return dataclasses.replace(
        now,
        last=jnp.where(now.running, token, now.last),
        positions=now.positions + now.running,
        drawn=now.drawn + now.running,
        matched=matched,
        running=now.running & ~over & (now.positions + 2 < now.ends),
        ended=now.ended | (now.running & over),
    )
