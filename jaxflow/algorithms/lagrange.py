"""A constraint on costs as a multiplier that is learnt: Safe-RLHF's PPO-Lagrangian.

Knows numbers per response and per token, no model. Dai et al., arXiv:2310.12773.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Multiplier:
    """λ and the costs that it follows: state, from step to step."""

    value: float  # λ, above 0
    window: tuple[float, ...]  # costs of the last responses, the oldest first


@dataclasses.dataclass(frozen=True)
class MultiplierRule:
    """How λ moves: ln λ ← min(ln λ_max, ln λ + α·λ·(mean cost − threshold)), once per step."""

    learning_rate: float  # α
    maximum: float  # λ_max
    window_episodes: int  # responses that the mean cost is taken over
    threshold: float  # mean cost that is allowed

    def __call__(self, multiplier: Multiplier, costs: Sequence[float]) -> Multiplier:
        """Return λ after a step with these costs of its responses.

        Costs that are not finite enter neither the window nor λ; without any there is nothing to follow.
        """
        finite = [float(cost) for cost in costs if math.isfinite(cost)]
        window = (*multiplier.window, *finite)[-self.window_episodes :]
        if not window:
            return multiplier
        excess = math.fsum(window) / len(window) - self.threshold
        logarithm = math.log(multiplier.value) + self.learning_rate * multiplier.value * excess
        # From below λ could underflow to 0, from where no factor brings it back.
        logarithm = max(min(logarithm, math.log(self.maximum)), _SMALLEST_LOGARITHM)
        return Multiplier(math.exp(logarithm), window)


_SMALLEST_LOGARITHM = -50.0


def constrained_advantages(
    reward_advantages: Float[Array, "B T"], cost_advantages: Float[Array, "B T"], multiplier: Array | float
) -> Float[Array, "B T"]:
    """Return (Â_R − λ·Â_C) / (1 + λ): the Lagrangian's advantage, at a scale that does not grow with λ.

    Note: with −β·KL in the reward stream and +β·KL in the cost stream, the KL's weight here is β at every λ.
    """
    return (reward_advantages - multiplier * cost_advantages) / (1.0 + multiplier)
