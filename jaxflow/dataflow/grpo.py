"""GRPO (arXiv 2402.03300) and its family: a response is judged by the others to its prompt, without a critic.

Which baseline, objective and KL: the config. Knows roles by what they do, nothing else.
"""

from __future__ import annotations

from jaxflow.dataflow.refill import informative_responses
from jaxflow.dataflow.roles import Roles
from jaxflow.types import Future, Metrics, Prompts


def grpo(roles: Roles, prompts: Future[Prompts]) -> list[Future[Metrics]]:
    """Run one step. Nothing here waits, unless groups that teach nothing are to be replaced."""
    rollout, scores = informative_responses(roles, prompts)

    reference_log_probs = roles.reference.log_probs(rollout)
    actor_log_probs = roles.actor.log_probs(rollout)
    experience = roles.estimator.experience(rollout, scores, actor_log_probs, reference_log_probs)

    return [
        roles.actor.update(experience),
        roles.estimator.statistics(rollout, scores, experience),
    ]
