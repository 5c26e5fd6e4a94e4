"""From the sections `data`, `partition` and `noise` to the data set and every client's rows.

NumPy only, so that the command line can check them before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config.sections import DataConfig, NoiseConfig, PartitionConfig
from fedsim.data.containers import Dataset
from fedsim.data.datasets import read_dataset
from fedsim.data.noise import spoilt_clients
from fedsim.data.partition.make import Partition, partition_rows
from fedsim.data.partition.population import Population
from fedsim.data.readers.coop import coop_identity, is_coop
from fedsim.data.splits import holdout
from fedsim.seeding import numpy_rng
from fedsim.storage.array_cache import file_identity


def draw_seed(data: DataConfig, seed: int) -> int:
    """Seed of few-shot draws; data that is not subsampled is the same for every seed."""
    drawn = data.resplit or data.shots is not None or data.max_train_samples is not None
    return seed if drawn else 0


class DataSource:
    """A configured data set, which is read when it is first asked for and then carried.

    Attributes:
        settings: The section `data`.
        seed: An experiment's `partition_seed`.
    """

    def __init__(self, data: DataConfig, seed: int) -> None:
        self.settings, self.seed = data, seed

    @cached_property
    def identity(self) -> Any:
        """Identifies the content without reading all of it."""
        name, path = self.settings.name, self.settings.path
        return coop_identity(name, path) if is_coop(name, path) else source_identity(path or name)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set itself."""
        return read_dataset(self.settings, self.seed)


@dataclass(frozen=True)
class Holdings:
    """The rows of every client.

    Attributes:
        partition: All training rows of every client.
        fit: Per client, the rows it trains on.
        held: Per client, the rows held out to choose settings on.
        spoilt: Clients whose `fit` rows `noise` spoils; `held` rows stay clean.
    """

    partition: Partition
    fit: Sequence[np.ndarray]
    held: Sequence[np.ndarray]
    spoilt: tuple[int, ...] = ()

    @property
    def fit_rows(self) -> np.ndarray:
        """All rows that clients train on, sorted."""
        return _all_rows(self.fit)

    @property
    def held_rows(self) -> np.ndarray:
        """All rows held out, sorted."""
        return _all_rows(self.held)

    @property
    def num_samples(self) -> float:
        """Samples that all clients together train on; of a population, the expected number."""
        return self.fit.num_samples if isinstance(self.fit, Population) else sum(map(len, self.fit))

    @property
    def shown(self) -> range:
        """Clients that tables describe one by one: all, or the first ones of a population."""
        return range(len(self.partition.label_counts))


def partition_clients(
    labels: np.ndarray,
    clients: np.ndarray | None = None,
    domains: np.ndarray | None = None,
    *,
    partition: PartitionConfig,
    seed: int,
    holdout_fraction: float,
    noise: NoiseConfig,
) -> Holdings:
    """The configured partition of the training rows, with every client's hold-out set apart.

    `Experiment.for_partition` gives the settings.

    Args:
        labels: int (N,), of the training rows.
        clients: int (N,), recorded client of each row, or None.
        domains: int (N,), domain of each row, or None.
        partition: How rows are shared out.
        seed: Of the split and the hold-outs.
        holdout_fraction: Share of each client's rows that it does not train on.
        noise: Which clients are spoilt.

    Raises:
        PartitionError: If the split asked for cannot be made from this data.
        ConfigError: If `noise` is asked for, but for less than half a client.
    """
    made = partition_rows(
        np.asarray(labels),
        partition,
        numpy_rng(seed, "partition"),
        clients=None if clients is None else np.asarray(clients),
        domains=None if domains is None else np.asarray(domains),
    )
    if isinstance(made.indices, Population):
        return Holdings(made, *made.indices.hold_out(holdout_fraction))
    parts = [
        holdout(rows, np.asarray(labels), holdout_fraction, numpy_rng(seed, "holdout", client))
        for client, rows in enumerate(made.indices)
    ]
    fit, held = tuple(p[0] for p in parts), tuple(p[1] for p in parts)
    return Holdings(made, fit, held, spoilt_clients(noise, made.num_clients, seed))


def _all_rows(clients: Sequence[np.ndarray]) -> np.ndarray:
    if isinstance(clients, Population):
        return clients.rows
    return np.sort(np.concatenate(clients))


def source_identity(name: str | None) -> Any:
    """Identifies a named or local source: its name, and for files their sizes and times."""
    if name is None:
        return None
    path = Path(name.partition("@")[2] or name)
    if not path.exists():
        path = Path(__file__).parents[1] / "models" / "pretrained" / name
    return [name, file_identity(path)] if path.exists() else [name]
