"""From the config to what judges responses. Starts nothing."""

from __future__ import annotations

from jaxflow.config import RewardConfig
from jaxflow.rewards.built_in import BuiltIn
from jaxflow.rewards.function import read_function
from jaxflow.rewards.sandbox import Sandbox
from jaxflow.rewards.sandbox_process import Limits
from jaxflow.rewards.verdict import Judge

# A built-in task's answers are exact; only rows of files name data sources of others.
_TASK_SCORER = "exact_match"


def choose_judge(reward: RewardConfig, files: bool) -> Judge:
    """Return what judges responses: the user's function, or built-in scorers; `files`: prompts are no built-in task's.

    Raises:
        UserError: there is no such file, or its further arguments cannot be read.
    """
    limits = Limits(reward.processes, reward.timeout_seconds, reward.memory_megabytes)
    if reward.function:
        function = read_function(reward.function, reward.function_arguments, reward.manager == "batch")
        return Sandbox(function, limits)
    return BuiltIn(reward.scorer or ("" if files else _TASK_SCORER), limits)
