"""NumPy oracles: every formula of jaxflow/algorithms again, token by token, in float64 and plain loops.

Imports nothing of jaxflow, and takes the textbook's form where the code takes a faster one (GAE as a sum of
residuals instead of a recursion, the objective by cases instead of max and min), so that both cannot be wrong
in the same way.
"""

from __future__ import annotations

import math

import numpy as np


def chosen(x, mask):
    """Return the values of x at the true positions, row by row."""
    return [float(v) for v, m in zip(np.ravel(x), np.ravel(mask), strict=True) if m]


def tokens_of(row_mask):
    """Return the true positions of one row."""
    return [t for t, m in enumerate(row_mask) if m]


def mean(values):
    return sum(values) / len(values) if values else 0.0


def sample_variance(values):
    return sum((v - mean(values)) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else 0.0


def whiten(x, mask):
    values = chosen(x, mask)
    whitened = np.zeros(np.shape(x))
    for index in zip(*np.nonzero(mask), strict=True):
        whitened[index] = (x[index] - mean(values)) / math.sqrt(sample_variance(values) + 1e-8)
    return whitened


def aggregate(losses, mask, mode, length_constant):
    """Aggregate a whole mini-batch: the counts are taken from the mask."""
    rows = [chosen(row, row_mask) for row, row_mask in zip(losses, mask, strict=True) if any(row_mask)]
    if not rows:
        return 0.0
    if mode == "token-mean":
        return mean([loss for row in rows for loss in row])
    if mode == "seq-mean-token-mean":
        return mean([mean(row) for row in rows])
    if mode == "token-sum":
        return sum(loss for row in rows for loss in row)
    sums = mean([sum(row) for row in rows])
    return {"seq-mean-token-sum": sums, "seq-mean-token-sum-norm": sums / length_constant}[mode]


def kl_token(log_prob, reference_log_prob, estimator):
    d = reference_log_prob - log_prob
    if estimator == "k3":
        d = min(max(d, -20.0), 20.0)
        return min(math.exp(d) - 1.0 - d, 10.0)
    return {"k1": -d, "k2": d * d / 2, "abs": abs(d)}[estimator]


def shape_rewards(scores, kl, mask, coefficient):
    rewards = np.zeros(np.shape(kl))
    for b, row_mask in enumerate(mask):
        for t in tokens_of(row_mask):
            rewards[b, t] = -coefficient * kl[b, t]
            if t == tokens_of(row_mask)[-1]:
                rewards[b, t] += scores[b]
    return rewards


def gae(rewards, values, mask, discount, gae_lambda):
    """Â_t = Σ_k (γλ)ᵏ δ_{t+k} over the response tokens, all others taken out."""
    advantages, returns = np.zeros(np.shape(rewards)), np.zeros(np.shape(rewards))
    for b, row_mask in enumerate(mask):
        tokens = tokens_of(row_mask)
        residuals = []
        for i, t in enumerate(tokens):
            after = values[b, tokens[i + 1]] if i + 1 < len(tokens) else 0.0
            residuals.append(rewards[b, t] + discount * after - values[b, t])
        for i, t in enumerate(tokens):
            weights = [(discount * gae_lambda) ** k for k in range(len(tokens) - i)]
            advantages[b, t] = sum(w * r for w, r in zip(weights, residuals[i:], strict=True))
            returns[b, t] = advantages[b, t] + values[b, t]
    return advantages, returns


def policy_token(log_prob, old_log_prob, advantage, low, high, dual_clip):
    """Return (loss, clipped, clipped_lower) of one token, by cases."""
    ratio = math.exp(min(max(log_prob - old_log_prob, -20.0), 20.0))
    if advantage >= 0:
        clipped = ratio > 1 + high and advantage > 0
        return -advantage * (1 + high if clipped else ratio), clipped, False
    clipped = ratio < 1 - low
    effective = 1 - low if clipped else ratio
    clipped_lower = dual_clip != 0 and effective > dual_clip
    return -advantage * (dual_clip if clipped_lower else effective), clipped, clipped_lower


def value_token(value, old_value, target, value_clip):
    """Return (loss, clipped) of one token."""
    plain = (value - target) ** 2
    if value_clip == 0:
        return plain / 2, False
    bounded = (min(max(value, old_value - value_clip), old_value + value_clip) - target) ** 2
    return max(plain, bounded) / 2, bounded > plain


def per_token(formula, mask, *arrays):
    """Apply a formula of one token to every response token; 0 elsewhere, where no array is read."""
    result = np.zeros(np.shape(mask))
    for index in zip(*np.nonzero(mask), strict=True):
        result[index] = formula(*(float(array[index]) for array in arrays))
    return result


def total(formula, *arrays):
    """Sum a formula of one token over every position."""
    return per_token(formula, np.ones(np.shape(arrays[0]), bool), *arrays).sum()


def numeric_gradient(function, x, step=1e-6):
    """Return ∂function/∂x by central differences."""
    gradient = np.zeros(np.shape(x))
    for index in np.ndindex(*np.shape(x)):
        up, down = np.array(x, np.float64), np.array(x, np.float64)
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def spread(name, values):
    largest, smallest = (max(values), min(values)) if values else (0.0, 0.0)
    return {f"{name}/mean": mean(values), f"{name}/max": largest, f"{name}/min": smallest}


def experience_statistics(rollout, scores, experience, kl_coefficient, kl_estimator, max_response_tokens):
    mask = np.asarray(experience.response_mask)
    rows = [b for b in range(len(mask)) if mask[b].any()]
    response = [int(mask[b].sum()) for b in rows]
    prompt = [int(rollout.lengths[b]) - n for b, n in zip(rows, response, strict=True)]
    kl = per_token(
        lambda p, q: kl_token(p, q, kl_estimator),
        mask,
        experience.actor_log_probs,
        experience.reference_log_probs,
    )
    rewards = shape_rewards(scores.scores, kl, mask, kl_coefficient).sum(axis=1)
    returns, values = chosen(experience.returns, mask), chosen(experience.values, mask)
    errors = [g - v for g, v in zip(returns, values, strict=True)]
    actor, sampler = chosen(experience.actor_log_probs, mask), chosen(rollout.rollout_log_probs, mask)
    gaps = [abs(math.exp(a) - math.exp(s)) for a, s in zip(actor, sampler, strict=True)]
    log_gaps = [abs(a - s) for a, s in zip(actor, sampler, strict=True)]
    return {
        **spread("critic/score", [float(scores.scores[b]) for b in rows]),
        **spread("critic/rewards", [float(rewards[b]) for b in rows]),
        **spread("critic/advantages", chosen(experience.advantages, mask)),
        **spread("critic/returns", returns),
        **spread("critic/values", values),
        "critic/vf_explained_var": 1 - sample_variance(errors) / (sample_variance(returns) + 1e-5),
        **spread("response_length", response),
        "response_length/clip_ratio": mean([float(n >= max_response_tokens) for n in response]),
        "rollout/stopped_rows": float(sum(rollout.stopped)),
        **spread("prompt_length", prompt),
        "actor/reward_kl_penalty": mean(chosen(kl, mask)),
        "actor/reward_kl_penalty_coeff": kl_coefficient,
        "training/rollout_probs_diff_mean": mean(gaps),
        "training/rollout_probs_diff_max": max(gaps, default=0.0),
        "training/rollout_probs_diff_std": math.sqrt(sample_variance(gaps)),
        "training/rollout_log_probs_diff_mean": mean(log_gaps),
        "training/rollout_log_probs_diff_max": max(log_gaps, default=0.0),
        "training/rollout_actor_probs_pearson_corr": float(np.corrcoef(np.exp(actor), np.exp(sampler))[0, 1]),
        "reward/accuracy_mean": mean([float(scores.accuracy[b]) for b in rows]),
        "reward/failed_rows": sum(bool(scores.failed[b]) for b in rows),
        "perf/total_num_tokens": sum(int(rollout.lengths[b]) for b in rows),
    }
