"""NumPy oracles of the critic-free family: estimators, objectives, weights, again in float64 and plain loops.

As `reference.py`: imports nothing of jaxflow, and goes response by response where the code goes array by array.
"""

from __future__ import annotations

import math

import numpy as np
import reference
from reference import mean, sample_variance, tokens_of


def returns_to_go(rewards, mask, discount):
    returns = np.zeros(np.shape(rewards))
    for b, row_mask in enumerate(mask):
        tokens = tokens_of(row_mask)
        for i, t in enumerate(tokens):
            returns[b, t] = sum(discount**k * rewards[b, later] for k, later in enumerate(tokens[i:]))
    return returns


def by_group(formula, scores, groups, mask):
    """Give each response `formula(its score, all scores of its group, its tokens, all tokens)`; 0 to an empty one."""
    result = np.zeros(len(scores))
    lengths = [len(tokens_of(row)) for row in mask]
    for b in range(len(scores)):
        if lengths[b] == 0:
            continue
        members = [i for i in range(len(scores)) if groups[i] == groups[b] and lengths[i] > 0]
        if len(members) == 1:
            continue
        values, counts = [float(scores[i]) for i in members], [lengths[i] for i in members]
        result[b] = formula(float(scores[b]), values, counts)
    return result


def grpo(scores, groups, mask, normalize):
    def formula(score, values, _):
        deviation = math.sqrt(sample_variance(values)) + 1e-6 if normalize else 1.0
        return (score - mean(values)) / deviation

    return by_group(formula, scores, groups, mask)


def rloo(scores, groups, mask):
    def formula(score, values, _):
        others = list(values)
        others.remove(score)
        return score - mean(others)

    return by_group(formula, scores, groups, mask)


def opo(scores, groups, mask):
    def formula(score, values, lengths):
        weighed = sum(n * v for n, v in zip(lengths, values, strict=True))
        return score - weighed / sum(lengths)

    return by_group(formula, scores, groups, mask)


def grpo_passk(scores, groups, mask, normalize):
    def formula(score, values, _):
        first, second = sorted(values)[-1], sorted(values)[-2]
        deviation = math.sqrt(sample_variance(values)) + 1e-6 if normalize else 1.0
        return (first - second) / deviation if score == first else 0.0

    return by_group(formula, scores, groups, mask)


def gpg(scores, groups, mask):
    centred = grpo(scores, groups, mask, False)
    present = [b for b, row in enumerate(mask) if any(row)]
    teaching = {groups[b] for b in present if centred[b] != 0}
    counted = sum(groups[b] in teaching for b in present)
    return centred * len(present) / max(counted, 1)


def spread(of_rows, mask):
    return np.where(mask, np.asarray(of_rows)[:, None], 0.0)


def gdpo(components, weights, groups, mask, normalize):
    each = [grpo(components[:, k], groups, mask, normalize) for k in range(components.shape[1])]
    total = sum(w * one for w, one in zip(weights, each, strict=True))
    return reference.whiten(spread(total, mask), mask)


def sequence_ratio(log_probs, old_log_probs, row_mask):
    return math.exp(mean([float(log_probs[t] - old_log_probs[t]) for t in tokens_of(row_mask)]))


def objective(name, log_probs, old_log_probs, advantages, mask, knobs):
    """The value of an objective at every response token."""
    losses = np.zeros(np.shape(mask))
    for b, row in enumerate(mask):
        tokens = tokens_of(row)
        if not tokens:
            continue
        row_ratio = sequence_ratio(log_probs[b], old_log_probs[b], row)
        row_advantage = mean([float(advantages[b, t]) for t in tokens])
        for t in tokens:
            p, q, a = (float(x[b, t]) for x in (log_probs, old_log_probs, advantages))
            r = math.exp(p - q)
            if name in ("gspo", "gspo_token"):
                low, high = knobs
                advantage = row_advantage if name == "gspo" else a
                clipped = min(max(row_ratio, 1 - low), 1 + high)
                losses[b, t] = -min(row_ratio * advantage, clipped * advantage)
            elif name == "geo_mean":
                low, high = knobs
                logs = [float(log_probs[b, u] - old_log_probs[b, u]) for u in tokens]
                held = [min(d, high) if row_advantage > 0 else max(d, -low) for d in logs]
                losses[b, t] = -row_advantage * math.exp(mean(held))
            elif name == "cispo":
                losses[b, t] = -min(max(r, 1 - knobs[0]), 1 + knobs[1]) * a * p
            elif name == "sapo":
                tau = knobs[0] if a > 0 else knobs[1]
                losses[b, t] = -4 / tau / (1 + math.exp(-tau * (r - 1))) * a
            elif name in ("dppo_tv", "dppo_kl"):
                bound, cap = knobs
                now, before = math.exp(p), math.exp(q)
                moved = abs(now - before)
                if name == "dppo_kl":
                    moved = before * (q - p) + (1 - before) * math.log((1 - before) / (1 - now))
                away = now > before if a > 0 else now < before
                losses[b, t] = 0.0 if moved > bound and away else -min(r, cap) * a * p
            elif name == "gpg":
                losses[b, t] = -a * p
            else:
                losses[b, t] = {"ratio": -a * r}[name]
    return losses
