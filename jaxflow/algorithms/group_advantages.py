"""Advantages without a critic: a response is judged by the others to its prompt, or by what followed a token.

Knows no KL and no loss: scores and rewards come shaped. Sees the whole step at once, so groups may lie anywhere in
it, over any devices. Rows without response tokens are in no group and have advantage 0. A group of one has nothing
to compare with: its advantage is 0 under every group baseline.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxflow.algorithms.masked import on_mask, whiten

STD_EPSILON = 1e-6
"""Added to a group's deviation, so that equal scores give 0 (as in verl); part of the formula, not a setting."""


def returns_to_go(
    rewards: Float[Array, "B T"], response_mask: Bool[Array, "B T"], discount: float
) -> Float[Array, "B T"]:
    """Return G_t = Σ_{k ≥ t} γ^{k−t} R_k over response tokens, 0 elsewhere; skipped positions cost no discount."""
    chex.assert_equal_shape([rewards, response_mask])

    def step(following, token):
        """Go from the token behind to this one."""
        reward, chosen = token
        following = jnp.where(chosen, reward + discount * following, following)
        return following, following

    tokens = (on_mask(rewards, response_mask).T, response_mask.T)
    _, returns = jax.lax.scan(step, jnp.zeros_like(rewards[:, 0]), tokens, reverse=True)
    return on_mask(returns.T, response_mask)


def grpo(
    scores: Float[Array, "B"], groups: Int[Array, "B"], present: Bool[Array, "B"], normalize_by_std: bool
) -> Float[Array, "B"]:
    """Return (s − mean_g) / (std_g + 1e-6), or s − mean_g without `normalize_by_std`.

    std is the sample deviation (n − 1). Shao et al., arXiv:2402.03300; without the division Dr.GRPO, Liu et al.,
    arXiv:2503.20783, to be aggregated as seq-mean-token-sum-norm.

    Args:
      scores: one per response.
      groups: which prompt each response answers, in [0, B).
      present: responses with at least one token; the others are in no group.
      normalize_by_std: static under jit.
    """
    size, mean = _size_and_mean(scores, groups, present)
    centred = on_mask(scores - mean, _differ(scores, groups, present))
    if not normalize_by_std:
        return centred
    variance = _total(jnp.square(centred), groups, present) / jnp.maximum(size - 1, 1)
    return centred / (jnp.sqrt(variance) + STD_EPSILON)


def rloo(scores: Float[Array, "B"], groups: Int[Array, "B"], present: Bool[Array, "B"]) -> Float[Array, "B"]:
    """Return s − the mean score of the group's others = n / (n − 1) · (s − mean_g).

    Ahmadian et al., arXiv:2402.14740. Arguments as of `grpo`.
    """
    size, mean = _size_and_mean(scores, groups, present)
    return on_mask((scores - mean) * size / jnp.maximum(size - 1, 1), _differ(scores, groups, present))


def opo(
    scores: Float[Array, "B"], groups: Int[Array, "B"], present: Bool[Array, "B"], lengths: Int[Array, "B"]
) -> Float[Array, "B"]:
    """Return s − Σ_g n·s / Σ_g n, n being a response's tokens: the baseline of least variance where scores are final.

    Hao et al., arXiv:2505.23585. Arguments as of `grpo`.

    Args:
      lengths: response tokens.
    """
    tokens = lengths.astype(scores.dtype)
    weighed = _total(tokens * on_mask(scores, present), groups, present)
    baseline = weighed / jnp.maximum(_total(tokens, groups, present), 1.0)
    return on_mask(scores - baseline, _differ(scores, groups, present))


def gpg(scores: Float[Array, "B"], groups: Int[Array, "B"], present: Bool[Array, "B"]) -> Float[Array, "B"]:
    """Return α·(s − mean_g), α = N / (N − M) with M of the N responses in groups of equal scores.

    α keeps the step's size where many groups teach nothing. Chu et al., arXiv:2504.02546. Arguments as of `grpo`.
    """
    centred = grpo(scores, groups, present, normalize_by_std=False)
    informative = jnp.sum(_differ(scores, groups, present))
    return centred * jnp.sum(present) / jnp.maximum(informative, 1)


def grpo_passk(
    scores: Float[Array, "B"], groups: Int[Array, "B"], present: Bool[Array, "B"], normalize_by_std: bool
) -> Float[Array, "B"]:
    """Return s_max − s_second of the group for its best response, 0 for the others and where the best is shared.

    With `normalize_by_std` divided by std_g + 1e-6. The gradient of the expected best of a group, Tang et al.,
    arXiv:2503.19595. Arguments as of `grpo`.
    """
    size, mean = _size_and_mean(scores, groups, present)
    number = len(scores)
    known = jnp.where(present, scores, -jnp.inf)
    best = jax.ops.segment_max(known, groups, number)[groups]
    is_best = present & (known == best)
    shared = _total(jnp.ones_like(scores), groups, is_best) > 1
    second = jax.ops.segment_max(jnp.where(is_best, -jnp.inf, known), groups, number)[groups]
    wins = is_best & ~shared & (size > 1)
    advantages = on_mask(best - jnp.where(wins, second, 0.0), wins)
    if not normalize_by_std:
        return advantages
    squares = _total(jnp.square(on_mask(scores - mean, present)), groups, present)
    return advantages / (jnp.sqrt(squares / jnp.maximum(size - 1, 1)) + STD_EPSILON)


def reinforce_plus_plus(
    rewards: Float[Array, "B T"], response_mask: Bool[Array, "B T"], discount: float
) -> Float[Array, "B T"]:
    """Return the rewards to go of each token, whitened over the whole step.

    Hu et al., arXiv:2501.03262; the KL is inside the rewards.
    """
    return whiten(returns_to_go(rewards, response_mask, discount), response_mask)


def reinforce_plus_plus_baseline(
    scores: Float[Array, "B"], groups: Int[Array, "B"], response_mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Return s − mean_g at each token of a response, whitened over the step's tokens. Hu et al., arXiv:2501.03262."""
    centred = grpo(scores, groups, jnp.any(response_mask, axis=1), normalize_by_std=False)
    return whiten(per_token(centred, response_mask), response_mask)


def remax(
    rewards: Float[Array, "B T"],
    greedy_scores: Float[Array, "B"],
    response_mask: Bool[Array, "B T"],
    discount: float,
) -> Float[Array, "B T"]:
    """Return G_t − the score of the greedy response to the same prompt. Li et al., arXiv:2310.10505.

    Args:
      rewards: paid for each token of the sampled response, KL penalty included where there is one.
      greedy_scores: of the response that the policy gives without sampling, without KL.
      response_mask: the sampled tokens.
      discount: γ per token.
    """
    return returns_to_go(rewards, response_mask, discount) - per_token(greedy_scores, response_mask)


def gdpo(
    components: Float[Array, "B K"],
    weights: Float[Array, "K"],
    groups: Int[Array, "B"],
    response_mask: Bool[Array, "B T"],
    normalize_by_std: bool,
) -> Float[Array, "B T"]:
    """Return Σ_k w_k·(GRPO's advantage in component k) at each token, whitened over the step's tokens.

    Normalised one by one, no component drowns in another's spread. GDPO, arXiv:2601.05242.

    Args:
      components: K rewards of each response.
      weights: of the components.
      groups: which prompt each response answers, in [0, B).
      response_mask: the sampled tokens.
      normalize_by_std: as of `grpo`, static under jit.
    """
    present = jnp.any(response_mask, axis=1)
    each = jax.vmap(lambda one: grpo(one, groups, present, normalize_by_std), in_axes=1, out_axes=1)
    return whiten(per_token(each(components) @ weights, response_mask), response_mask)


def per_token(of_rows: Float[Array, "B"], response_mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Return each row's number at its response tokens, 0 elsewhere."""
    return on_mask(jnp.broadcast_to(of_rows[:, None], response_mask.shape), response_mask)


def _total(x: Float[Array, "B"], groups: Int[Array, "B"], counted: Bool[Array, "B"]) -> Float[Array, "B"]:
    """Return the sum over each row's group of what is counted."""
    return jax.ops.segment_sum(on_mask(x, counted), groups, len(groups))[groups]


def _differ(
    scores: Float[Array, "B"], groups: Int[Array, "B"], present: Bool[Array, "B"]
) -> Bool[Array, "B"]:
    """Return which responses are in a group of unequal scores.

    Asked of the scores themselves: equal ones may leave their mean by an ulp, which a deviation of 0 would blow up.
    """
    number = len(groups)
    highest = jax.ops.segment_max(jnp.where(present, scores, -jnp.inf), groups, number)[groups]
    lowest = jax.ops.segment_min(jnp.where(present, scores, jnp.inf), groups, number)[groups]
    return present & (highest > lowest)


def _size_and_mean(
    scores: Float[Array, "B"], groups: Int[Array, "B"], present: Bool[Array, "B"]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    chex.assert_rank([scores, groups, present], 1)
    chex.assert_equal_shape([scores, groups, present])
    chex.assert_type(scores, float)
    size = _total(jnp.ones_like(scores), groups, present)
    return size, _total(scores, groups, present) / jnp.maximum(size, 1)
