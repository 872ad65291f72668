"""The data that crosses boundaries, and the conventions of time and masks, stated once.

Knows no model, no algorithm, no device. Arrays are host arrays (NumPy) between stages and traced arrays
inside compiled programs; the same classes serve both.

Conventions, everywhere:
  * Letters: B sequences, P prompts, T positions, V vocabulary.
  * Sequences are right-padded: row b holds its prompt, then its response, then padding; `lengths[b]` counts
    the first two. What lies behind `lengths[b]` is never read.
  * Position t holds token t. `log_probs[t]` is of token t given the tokens before it; `values[t]` is the
    estimate made before token t is chosen; `rewards[t]` is paid for token t.
  * `response_mask[t]` is true where the policy chose token t (its end-of-sequence token included). Every
    formula reads such positions alone. A row whose mask is all false has no say in anything.
  * `actor_log_probs` come from the policy's training path before its update, `rollout_log_probs` from the
    sampler, `reference_log_probs` from the frozen reference; all at the sampling temperature, before
    top-k or top-p cut the distribution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Value = TypeVar("Value", covariant=True)


class Future(Protocol[Value]):
    """A result that may still be on its way. Handed to another call it starts that call when it is ready."""

    def result(self) -> Value:
        """Wait for the value and bring it here; raise what the call raised."""
        ...


Metrics = Mapping[str, float]
"""Named scalars of one step; the name carries the unit where it has one."""


class UserError(Exception):
    """A mistake of the user's (config, data, weights, checkpoint): shown as its message, without a trace."""


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """One row of prompt data, as read: what the policy is asked and what its reward is measured against."""

    prompt: str  # text shown to the policy, chat template applied
    tokens: tuple[int, ...]  # token ids of `prompt`
    ground_truth: object  # what the reward function compares with; plain JSON value
    data_source: str  # names the task; validation is reported per data source
    extra_info: Mapping[str, object]  # passed on to the reward function unread
    # Own seed of its responses: sample g draws from seed + g, in every step the same; -1: none
    seed: int = -1


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of one step, one row per sequence to be generated (P prompts × samples per prompt = B)."""

    tokens: Int[np.ndarray, "B T"]  # int32, right-padded
    lengths: Int[np.ndarray, "B"]  # int32, prompt tokens per row, >= 1
    sequence_ids: Int[np.ndarray, "B"]  # int32, address of the row's randomness within its step; unique
    own_seeds: Int[np.ndarray, "B"]  # int32, in place of run seed, step and sequence id; -1: none
    groups: Int[np.ndarray, "B"]  # int32, index of the prompt that the row samples
    step: int  # of the run; with the run's seed and the sequence id, where each row's randomness is
    rows: tuple[PromptRow, ...]  # one per sequence, for the reward function


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """What the policy answered: prompts and responses, right-padded to one length."""

    tokens: Int[Array, "B T"]  # int32
    lengths: Int[Array, "B"]  # int32, prompt + response tokens
    response_mask: Bool[Array, "B T"]  # true on response tokens
    rollout_log_probs: Float[Array, "B T"]  # float32, at the temperature, before truncation; 0 off the mask
    behaviour_log_probs: Float[Array, "B T"]  # float32, of the distribution sampled from (after top-k/top-p)
    finished: Bool[Array, "B"]  # ended by itself (end token), not by the length limit
    groups: Int[Array, "B"]  # int32, index of the prompt each row answers
    policy_updates: Int[Array, "B"]  # int32, optimizer updates behind the weights that sampled: the row's age
    # Cut before its own limit: the call's time or tokens were spent; maybe no response
    stopped: Bool[Array, "B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLogProbs:
    """What a language model says of given tokens."""

    log_probs: Float[Array, "B T"]  # float32; 0 where nothing was asked
    entropy: Float[Array, "B T"]  # float32 nats, of the distribution at each position; 0 where not asked
    # float32 nats, KL(π ‖ π_ref) over the whole vocabulary at each position; None where no reference was at hand.
    reference_kl: Float[Array, "B T"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """What the reward gave each sequence."""

    scores: Float[Array, "B"]  # float32, paid at the last response token
    accuracy: Float[Array, "B"]  # float32 in [0, 1], share of the task solved; equals scores if not told
    failed: Bool[Array, "B"]  # the reward function raised or returned no number: `scores` is the fallback
    components: Float[Array, "B K"] | None = None  # float32, K rewards that an algorithm weighs one by one


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Experience:
    """All that an update of actor or critic reads. Fields an algorithm has no use for are zeros."""

    tokens: Int[Array, "B T"]  # int32
    lengths: Int[Array, "B"]  # int32
    response_mask: Bool[Array, "B T"]
    actor_log_probs: Float[Array, "B T"]  # float32, of the policy that the ratio is taken against
    reference_log_probs: Float[Array, "B T"]  # float32; the actor's own where there is no reference
    values: Float[Array, "B T"]  # float32, the critic's before its update
    advantages: Float[Array, "B T"]  # float32
    returns: Float[Array, "B T"]  # float32, the critic's target
    policy_updates: Int[Array, "B"]  # int32, as of the rollout
    # float32, how much each token's objective counts; None: all the same. Denominators are not weighed.
    weights: Float[Array, "B T"] | None = None
    # Tokens whose distance from π_old costs; None: no such penalty
    penalised: Bool[Array, "B T"] | None = None
    # float32 nats, over the whole vocabulary, where the rewards were shaped with it; None: with an estimate.
    reference_kl: Float[Array, "B T"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """Sequences to imitate: the loss is on `response_mask` alone."""

    tokens: Int[Array, "B T"]  # int32
    lengths: Int[Array, "B"]  # int32
    response_mask: Bool[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """Sizes of a whole mini-batch, over all micro-batches and devices: what losses divide by."""

    tokens: Int[Array, ""]  # int32, true positions of the response mask, at least 1
    sequences: Int[Array, ""]  # int32, rows with at least one such position, at least 1


@dataclasses.dataclass(frozen=True)
class Sample:
    """One generated answer, as shown to people and written to samples.jsonl."""

    step: int
    data_source: str
    prompt: str
    response: str
    ground_truth: str
    score: float
    accuracy: float
    finished: bool
    # Further numbers that judging told, by name; `cost` is what a cost role said
    numbers: Mapping[str, float]
    prediction: str | None = None  # the answer that the reward read in the response; None: it told none


@dataclasses.dataclass(frozen=True)
class RewardFigures:
    """What judging a step's responses came to, beside the scores, as one process saw it."""

    errors: int  # rows of all processes whose reward raised or returned no finite number
    timeouts: int  # rows of all processes whose reward took too long
    crashes: int  # rows of all processes whose reward ended its process or took too much memory
    sums: Mapping[str, float]  # a number that the reward told -> its sum over this process's rows
    counts: Mapping[str, int]  # the same number -> rows of this process that told it


@dataclasses.dataclass(frozen=True)
class WeightsMoved:
    """What bringing one bucket of weights to another pool took, as its first process saw it."""

    bytes_per_device: int  # received by the device that got most
    seconds: float


OFFLOAD_SPAN = "offload"
"""Name of a span inside a call in which arrays move between host and devices."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of time in which a pool did one thing."""

    pool: str
    role: str
    name: str  # stage of a call, or what happened inside it ("transition")
    started: float  # seconds since the epoch
    seconds: float
    bytes: int  # moved for it: a call's arguments and results, or what the busiest device received
    tokens: int  # prompt and response tokens that it handled; 0 where that means nothing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Judgements:
    """Responses known to be right or wrong, wanted or unwanted: each by itself, none compared with another."""

    tokens: Int[Array, "B T"]  # int32
    lengths: Int[Array, "B"]  # int32, prompt + response tokens
    response_mask: Bool[Array, "B T"]  # true on response tokens, the end token included where there is one
    labels: Float[Array, "B"]  # float32, 1: right, 0: wrong
    reference_log_probs: Float[Array, "B T"] | None = None  # float32, of the frozen policy; None: not asked
    reference_points: Float[Array, "B"] | None = None  # float32 nats, KTO's z; None: not asked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Preferences:
    """Pairs of responses to one prompt, the better one first; a pair is one row and never parted.

    Of costs the better response is the less harmful one.
    """

    # int32; [:, 0] prompt and chosen response, [:, 1] prompt and rejected response
    tokens: Int[Array, "B 2 T"]
    chosen_lengths: Int[Array, "B"]  # int32, prompt + response tokens
    rejected_lengths: Int[Array, "B"]  # int32
    response_mask: Bool[Array, "B 2 T"]  # true on response tokens, the end token included where there is one
    # float32, by which the chosen response's score should at least lead; 0: not told
    margins: Float[Array, "B"]
    chosen_harm: Float[Array, "B"]  # float32, +1: the chosen response is unsafe, -1: safe, 0: not told
    rejected_harm: Float[Array, "B"]  # float32
    reference_log_probs: Float[Array, "B 2 T"] | None = None  # float32, of the frozen policy; None: not asked

    @property
    def lengths(self) -> Int[np.ndarray, "B"]:
        """Return the tokens of the longer sequence of each pair, on the host."""
        return np.maximum(self.chosen_lengths, self.rejected_lengths)
