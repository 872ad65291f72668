"""DAPO's dynamic sampling (arXiv 2503.14476): groups whose rewards are all equal are replaced by others.

Knows roles by what they do; which further prompts there are, and how many rounds of them, is the controller's.
"""

from __future__ import annotations

from jaxflow.dataflow.roles import Roles
from jaxflow.types import Future, Prompts, Rollout, Scores


def informative_responses(roles: Roles, prompts: Future[Prompts]) -> tuple[Future[Rollout], Future[Scores]]:
    """Answer the prompts and judge the answers; replace groups that teach nothing while there are further prompts.

    Without further prompts nothing here waits. With them it waits, once per round, for one number: how many groups
    teach nothing. Those that still do when the prompts run out stay, at advantage 0.
    """
    rollout = roles.actor.generate(prompts)
    scores = roles.reward.score(rollout, prompts)
    for more in roles.further_prompts:
        if roles.estimator.uninformative_groups(scores).result() == 0:
            break
        others = roles.actor.generate(more)
        their_scores = roles.reward.score(others, more)
        rollout = roles.estimator.refilled_rollout(rollout, others, scores, their_scores)
        scores = roles.estimator.refilled_scores(scores, their_scores)
    return rollout, scores
