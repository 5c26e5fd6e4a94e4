"""The part of an experiment that its method may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.config import sections
from fedsim.config.distill import DistillConfig


@dataclass(frozen=True)
class MethodConfig:
    """The sections that a method reads, under their names in `Experiment`.

    A method trains and aggregates. It reads neither the partition of the data nor the settings of
    failures, compression, evaluation, reports and resources.
    """

    method: str
    """Its name in tables."""
    use: str
    """Its implementation."""
    options: dict[str, Any]
    """Its own settings as the study gives them; `Method.options` holds them checked."""
    data: sections.DataConfig
    models: sections.ModelsConfig
    synthetic: sections.SyntheticConfig
    cache: sections.CacheConfig
    distill: DistillConfig
    train: sections.TrainConfig
    server: sections.ServerConfig
    seed: int
    partition_seed: int
    train_seed: int
