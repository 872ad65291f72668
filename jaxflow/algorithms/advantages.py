"""Advantage estimators: from token rewards to how much better than expected each token was.

Knows no KL, no whitening, no loss: rewards come shaped, advantages leave raw.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxflow.algorithms.masked import on_mask

CRITIC_FREE = (
    "grpo",
    "grpo_passk",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "rloo",
    "opo",
    "gpg",
    "gdpo",
)
"""Those that read scores alone: no values, no greedy response."""
ESTIMATORS = ("gae", "remax", *CRITIC_FREE)


def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    response_mask: Bool[Array, "B T"],
    discount: float,
    gae_lambda: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Return generalized advantage estimates and the critic's targets.

    δ_t = R_t + γ·V_{t+1} − V_t,  Â_t = δ_t + γλ·Â_{t+1},  G_t = Â_t + V_t;  V = Â = 0 after the last token.

    Note: t + 1 is the next *response* token: positions off the mask between two of them (a tool's output,
    say) are skipped, cost no discount, and leave as 0. The targets G are made of the raw advantages.

    Schulman et al., arXiv:1506.02438.

    Args:
      rewards: paid for each token, KL penalty included where there is one.
      values: the critic's estimate before each token.
      response_mask: the tokens that the policy chose.
      discount: γ per token.
      gae_lambda: λ; 1 is Monte-Carlo return minus value, 0 is one-step temporal difference.
    """
    chex.assert_rank([rewards, values, response_mask], 2)
    chex.assert_equal_shape([rewards, values, response_mask])
    chex.assert_type([rewards, values], float)

    def step(following, token):
        """Go from the token behind to this one; those that the policy did not choose hand on what they are given."""
        following_value, following_advantage = following
        reward, value, chosen = token
        residual = reward + discount * following_value - value
        advantage = residual + discount * gae_lambda * following_advantage
        following = (
            jnp.where(chosen, value, following_value),
            jnp.where(chosen, advantage, following_advantage),
        )
        return following, advantage

    values = on_mask(values, response_mask)
    tokens = (on_mask(rewards, response_mask).T, values.T, response_mask.T)
    nothing = jnp.zeros_like(values[:, 0])
    _, advantages = jax.lax.scan(step, (nothing, nothing), tokens, reverse=True)
    advantages = on_mask(advantages.T, response_mask)
    return advantages, advantages + values
