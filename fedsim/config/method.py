"""The part of an experiment that its method may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.config.distill import DistillConfig
from fedsim.config.sections import (
    CacheConfig,
    DataConfig,
    EngineConfig,
    ModelsConfig,
    ServerConfig,
    SyntheticConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class MethodConfig:
    """What a method is built from (`Experiment.for_method`).

    A method trains and aggregates. It does not read how the data is split, which clients fail, what
    is compressed, measured and reported, or where a run is computed. The names are those of
    `Experiment`.
    """

    method: str
    """Its name in tables."""
    use: str
    """Its implementation."""
    options: dict[str, Any]
    """Its own settings as the study gives them; `Method.options` holds them checked."""
    data: DataConfig
    models: ModelsConfig
    synthetic: SyntheticConfig
    cache: CacheConfig
    distill: DistillConfig
    train: TrainConfig
    server: ServerConfig
    engine: EngineConfig
    """`threads` goes with work that a method gives to an `Executor`."""
    seed: int
    partition_seed: int
    train_seed: int
