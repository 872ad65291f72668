"""Algorithms as scripts: each a plain function of roles and a batch of prompts."""

from collections.abc import Callable, Mapping

from jaxflow.dataflow.ppo import ppo
from jaxflow.dataflow.roles import Roles
from jaxflow.types import Future, Metrics, Prompts

DATAFLOWS: Mapping[str, Callable[[Roles, Prompts], list[Future[Metrics]]]] = {"ppo": ppo}
"""`algorithm.name` in a config -> one step of that algorithm."""
