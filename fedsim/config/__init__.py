"""A study's configuration: its sections, one experiment, the YAML file. Imports nothing heavy."""

from fedsim.config.experiment import Experiment
from fedsim.config.method import MethodConfig
from fedsim.config.sections import (
    CacheConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    FailuresConfig,
    ModelsConfig,
    NoiseConfig,
    PartitionConfig,
    ReportConfig,
    ResourcesConfig,
    Section,
    ServerConfig,
    SyntheticConfig,
    TrainConfig,
    WireConfig,
)

__all__ = [
    "CacheConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "Experiment",
    "FailuresConfig",
    "MethodConfig",
    "ModelsConfig",
    "NoiseConfig",
    "PartitionConfig",
    "ReportConfig",
    "ResourcesConfig",
    "Section",
    "ServerConfig",
    "SyntheticConfig",
    "TrainConfig",
    "WireConfig",
]
