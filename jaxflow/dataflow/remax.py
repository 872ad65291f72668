"""ReMax (arXiv 2310.10505): the greedy response to a prompt is the baseline of the sampled one. No critic.

Beside PPO, as in HybridFlow's Figure 6: one more generation, and the critic is gone. Knows roles by what they do.
"""

from __future__ import annotations

from jaxflow.dataflow.roles import Roles
from jaxflow.types import Future, Metrics, Prompts


def remax(roles: Roles, prompts: Future[Prompts]) -> list[Future[Metrics]]:
    """Run one step: generate twice, prepare, learn. Nothing here waits; the returned metrics are the step's end."""
    rollout = roles.actor.generate(prompts)
    greedy = roles.actor.generate_greedy(prompts)

    scores = roles.reward.score(rollout, prompts)
    greedy_scores = roles.reward.score(greedy, prompts)
    reference_log_probs = roles.reference.log_probs(rollout)
    actor_log_probs = roles.actor.log_probs(rollout)
    experience = roles.estimator.experience_over_greedy(
        rollout, scores, greedy_scores, actor_log_probs, reference_log_probs
    )

    return [
        roles.actor.update(experience),
        roles.estimator.statistics(rollout, scores, experience),
    ]
