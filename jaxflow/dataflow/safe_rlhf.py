"""Safe-RLHF's PPO-Lagrangian (arXiv 2310.12773): rewards rise while costs stay below their threshold.

Beside PPO, as in HybridFlow's Figure 6: a cost model and its critic, their advantages weighed against the rewards' by
a multiplier that follows the costs, and a pretraining batch in the policy's loss. Knows roles by what they do.
"""

from __future__ import annotations

from jaxflow.dataflow.roles import Roles
from jaxflow.types import Future, Metrics, Prompts


def safe_rlhf(roles: Roles, prompts: Future[Prompts]) -> list[Future[Metrics]]:
    """Run one step: generate, prepare, learn. Nothing here waits; the returned metrics are the step's end."""
    rollout = roles.actor.generate(prompts)

    scores = roles.reward.score(rollout, prompts)
    costs = roles.cost.score(rollout, prompts)
    values = roles.critic.values(rollout)
    cost_values = roles.cost_critic.values(rollout)
    reference_log_probs = roles.reference.log_probs(rollout)
    actor_log_probs = roles.actor.log_probs(rollout)
    pretraining = roles.pretraining.batch(prompts)
    experience = roles.estimator.experience(rollout, scores, actor_log_probs, reference_log_probs, values)
    cost_experience = roles.estimator.cost_experience(
        rollout, costs, actor_log_probs, reference_log_probs, cost_values
    )
    constrained = roles.estimator.constrained(experience, cost_experience, costs)

    return [
        roles.critic.update(experience),
        roles.cost_critic.update(cost_experience),
        roles.actor.update(constrained, pretraining),
        roles.estimator.statistics(rollout, scores, constrained),
        roles.estimator.follow_costs(costs),
    ]
