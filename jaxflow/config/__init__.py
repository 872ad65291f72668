"""The schema of a run and the ways in and out of it; every default is written once, in the schema."""

from jaxflow.config.algorithm import AlgorithmConfig, GDPOConfig, KLConfig
from jaxflow.config.cluster import ClusterConfig, DevicesConfig, MeshConfig, PoolConfig
from jaxflow.config.learning import (
    ActorConfig,
    CriticConfig,
    LoraConfig,
    OptimizerConfig,
    RolloutConfig,
)
from jaxflow.config.material import DataConfig, RewardConfig, WarmStartConfig
from jaxflow.config.reading import (
    check_overrides,
    default_config_dict,
    difference,
    flatten,
    from_config_dict,
    from_json,
    override,
    pool,
    refuse,
    to_json,
)
from jaxflow.config.schema import CheckpointConfig, Config, RunConfig, TrackingConfig

__all__ = [
    "ActorConfig",
    "AlgorithmConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "CriticConfig",
    "DataConfig",
    "DevicesConfig",
    "GDPOConfig",
    "KLConfig",
    "LoraConfig",
    "MeshConfig",
    "OptimizerConfig",
    "PoolConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "TrackingConfig",
    "WarmStartConfig",
    "check_overrides",
    "default_config_dict",
    "difference",
    "flatten",
    "from_config_dict",
    "from_json",
    "override",
    "pool",
    "refuse",
    "to_json",
]
