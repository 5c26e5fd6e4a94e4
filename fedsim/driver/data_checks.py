"""Checks of a study's data before any run begins, with NumPy only: torch is not loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsim.config import Experiment
from fedsim.data.containers import Dataset
from fedsim.data.datasets import read_dataset
from fedsim.data.from_config import Holdings, draw_seed, partition_clients

Known = set[tuple[str, ...]]
"""Settings of data sets and partitions that have been made."""


def each_partition(
    experiments: Sequence[Experiment], known: Known | None = None
) -> Iterator[tuple[int, Dataset, Holdings]]:
    """Every distinct partition of some experiments; each data set is read once.

    Args:
        experiments: May share data sets and partitions.
        known: Partitions to leave out; new ones are added.

    Yields:
        Position of the first experiment with the partition, the data set, and each client's rows.

    Raises:
        DataError: If data is missing or broken, or a partition cannot be made from it.
    """
    known = set() if known is None else known
    of_data: dict[tuple[str, str], list[int]] = {}
    for position, e in enumerate(experiments):
        source = (e.data.model_dump_json(), str(draw_seed(e.data, e.partition_seed)))
        key = (*source, e.partition.model_dump_json(), str(e.partition_seed))
        if key not in known:
            known.add(key)
            of_data.setdefault(source, []).append(position)
    for positions in of_data.values():
        first = experiments[positions[0]]
        data = read_dataset(first.data, first.partition_seed)
        train = data.train
        for position in positions:
            settings = experiments[position].for_partition()
            split = partition_clients(train.labels, train.clients, train.domains, **settings)
            yield position, data, split


def check_data(experiments: Sequence[Experiment], known: Known | None = None) -> None:
    """Read every data set and make every partition, so that errors are found now.

    Raises:
        DataError: See `each_partition`.
    """
    for _ in each_partition(experiments, known):
        pass
