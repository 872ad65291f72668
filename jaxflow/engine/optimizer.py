"""AdamW behind a global-norm clip, with a schedule, through optax. Knows no model."""

from __future__ import annotations

import dataclasses

import optax

SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The numbers of one AdamW."""

    learning_rate: float  # peak
    schedule: str  # one of SCHEDULES
    final_fraction: float  # of the peak, where cosine or linear end
    warmup_updates: int  # linear from 0
    total_updates: int  # where the schedule ends
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float  # of the averaged gradient; 0: no clip

    def learning_rates(self) -> optax.Schedule:
        """Return the learning rate as a function of the number of updates done."""
        decay_updates = max(1, self.total_updates - self.warmup_updates)
        end = self.learning_rate * self.final_fraction
        after = {
            "constant": optax.constant_schedule(self.learning_rate),
            "cosine": optax.cosine_decay_schedule(self.learning_rate, decay_updates, self.final_fraction),
            "linear": optax.linear_schedule(self.learning_rate, end, decay_updates),
        }[self.schedule]
        if self.warmup_updates == 0:
            return after
        # Update 0 already moves: the ramp reaches the peak at update `warmup_updates`.
        first = self.learning_rate / (self.warmup_updates + 1)
        ramp = optax.linear_schedule(first, self.learning_rate, self.warmup_updates)
        return optax.join_schedules([ramp, after], [self.warmup_updates])

    def transformation(self) -> optax.GradientTransformation:
        """Return clip ∘ AdamW (decoupled weight decay, arXiv 1711.05101, on every weight as in PyTorch)."""
        adamw = optax.adamw(
            self.learning_rates(),
            b1=self.beta1,
            b2=self.beta2,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
        )
        if self.clip_norm == 0:
            return adamw
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw)
