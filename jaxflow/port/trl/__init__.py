"""TRL's dialects: the arguments of its GRPO and PPO trainers."""

from jaxflow.port.trl.grpo import TRL_GRPO
from jaxflow.port.trl.ppo import TRL_PPO

__all__ = ["TRL_GRPO", "TRL_PPO"]
