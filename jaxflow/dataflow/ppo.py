"""PPO (arXiv 1707.06347) as RLHF runs it (arXiv 2203.02155). Knows roles by what they do, nothing else."""

from __future__ import annotations

from jaxflow.dataflow.roles import Roles
from jaxflow.types import Future, Metrics, Prompts


def ppo(roles: Roles, prompts: Future[Prompts]) -> list[Future[Metrics]]:
    """Run one step: generate, prepare, learn. Nothing here waits; the returned metrics are the step's end."""
    rollout = roles.actor.generate(prompts)

    scores = roles.reward.score(rollout, prompts)
    values = roles.critic.values(rollout)
    reference_log_probs = roles.reference.log_probs(rollout)
    actor_log_probs = roles.actor.log_probs(rollout)
    experience = roles.estimator.experience(rollout, scores, actor_log_probs, reference_log_probs, values)

    return [
        roles.critic.update(experience),
        roles.actor.update(experience),
        roles.estimator.statistics(rollout, scores, experience),
    ]
