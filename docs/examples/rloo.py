"""RLOO (arXiv 2402.14740) with a role of its own: python -m jaxflow.main --config=docs/examples/rloo.py"""

import pathlib
import runpy

import numpy as np

from jaxflow.dataflow import Dataflow
from jaxflow.types import Experience, UserError
from jaxflow.workers.protocol import exposed
from jaxflow.workers.transfer import DP_PROTO, ONE_TO_ALL


class LeaveOneOut:
    """Judges a response against the other responses to its prompt: no critic, no reference."""

    def __init__(self, config, derived, place):
        self._samples = config.rollout.samples_per_prompt

    @exposed("adv", DP_PROTO)
    def experience(self, rollout, scores, actor_log_probs):
        """Give the tokens of a response A = its score − the mean score of its prompt's others, [B, T]."""
        groups, mask, log_probs = rollout.groups, rollout.response_mask, actor_log_probs.log_probs
        if self._samples < 2 or np.any(np.bincount(groups)[groups] != self._samples):
            raise UserError("leave_one_out: set rollout.samples_per_prompt > 1, and its pool's hosts to 1")
        others = np.bincount(groups, scores.scores)[groups] - scores.scores
        advantages = scores.scores - others / (self._samples - 1)
        per_token = np.where(mask, advantages[:, None], 0.0).astype(np.float32)
        unused = np.zeros_like(log_probs)  # reference_log_probs, values and returns
        learnt = (log_probs, unused, unused, per_token, unused, rollout.policy_updates)
        return Experience(rollout.tokens, rollout.lengths, mask, *learnt)

    @exposed("adv", ONE_TO_ALL, replicated=True)
    def statistics(self, scores):
        """Describe the step in named scalars."""
        return {"critic/score/mean": float(np.mean(scores.scores))}


def rloo(roles, prompts):
    """Run one step."""
    rollout = roles.actor.generate(prompts)
    scores = roles.reward.score(rollout, prompts)
    experience = roles.leave_one_out.experience(rollout, scores, roles.actor.log_probs(rollout))
    return [roles.actor.update(experience), roles.leave_one_out.statistics(scores)]


RLOO = Dataflow(rloo, cast=("actor", "reward", "leave_one_out"), roles={"leave_one_out": LeaveOneOut})


def get_config():
    """Return ppo_tiny's config with this algorithm in place of PPO."""
    ppo_tiny = pathlib.Path(__file__).parents[2] / "configs" / "ppo_tiny.py"
    config = runpy.run_path(str(ppo_tiny))["get_config"]()
    config.algorithm.name = f"{__file__}:RLOO"
    config.algorithm.loss_aggregation = "seq-mean-token-sum"  # a response is one action
    config.cluster.pools.main.roles = RLOO.cast
    return config
