"""What one step asks of each role: how many passes over how many tokens. Knows no device and no layout."""

from __future__ import annotations

import dataclasses
import math

from jaxflow.mapping.model_size import ModelSize


@dataclasses.dataclass(frozen=True, eq=False)
class RoleLoad:
    """One role's part of a step. Compared by identity: it is a key of large caches."""

    role: str
    model: ModelSize
    trained: bool
    generations: int  # responses made for each prompt row: 2 in ReMax, whose second is greedy
    scores: int  # forward passes over the step's sequences, between generation and training
    updates: int  # optimizer updates per step
    minibatch_sequences: int  # of each update, over all devices; 0 for a frozen role
    microbatch_tokens: int  # of one forward/backward pass of one replica
    adapters: int = 0  # parameters that learn beside weights that do not; 0: the weights themselves learn
    base_bytes: int = 4  # per parameter, of weights beside adapters
    stays: bool = False  # it scores in the layout of training alone
    # It also scores rows of validation, which pools of several hosts cut as in training
    validates: bool = False
    score_references: int = 0  # frozen weights beside its own that pass over the same rows when it scores
    learn_references: int = 0  # and in each pass that learns; both are the same weights
    counts_choices: bool = False  # a pass before those that learn counts where a mixture's tokens go
    turn: int = 0  # of those that score on one pool, who is called before whom
    borrows: bool = False  # it keeps no weights: those that it generates with come from another pool

    @property
    def references(self) -> int:
        """Count the frozen weights of its own size that it keeps beside its own."""
        return max(self.score_references, self.learn_references)

    @property
    def learning_experts(self) -> int:
        """Count the weights of experts that have gradients."""
        return 0 if self.adapters > 0 else self.model.layers * self.model.layer_experts

    def learning_share(self, ways: int, expert: int) -> float:
        """Return how many of them a device has: matrices are cut `ways` ways, experts `expert` times as often."""
        return self.adapters / ways if self.adapters > 0 else self.model.share(ways, expert)


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sequences of one step; every prompt and response is as long as it may be."""

    sequences: int
    prompt_tokens: int
    response_tokens: int
    score_tokens: int  # of one scoring pass of one replica
    remat: bool  # layers are computed again in the backward pass
    most_rows: int  # generated at once by one replica, at most; 0: as many as fit
    samples_per_prompt: int = 1
    parts: int = 1  # calls that generate the rows, and score them; other pools score one part beside the next

    @property
    def part_sequences(self) -> int:
        """Return the rows of one call."""
        return math.ceil(self.sequences / self.parts)

    @property
    def length(self) -> int:
        """Return the tokens of one sequence."""
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens(self) -> int:
        """Return prompt and response tokens of a step: what throughput counts."""
        return self.sequences * self.length


STAGES = ("generation", "preparation", "training")
"""The stages of a step: inside one, pools work at the same time; they follow each other (HybridFlow §2.1)."""
