"""Splitting the training samples over clients.

    from fedsim.data import load_dataset, make_partition
    data = load_dataset("digits")
    split = make_partition(data.train.labels, scheme="dirichlet_label", num_clients=10,
                           dirichlet_alpha=0.1, rng=0)

Every scheme is seeded and always ends. All but `dirichlet_drawn` are disjoint; there a minimum
client size is met by moving samples, and what that changed is in the partition's log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fedsim.config.sections import SCHEME_OPTIONS
from fedsim.data.partition.heterogeneity import (
    PartitionStatistics,
    partition_statistics,
    total_variation,
)
from fedsim.data.partition.population import Population, dirichlet_drawn
from fedsim.data.partition.repair import repair
from fedsim.data.partition.sampling import Ask, Draft
from fedsim.data.partition.schemes import SCHEMES
from fedsim.errors import ConfigError, PartitionError, did_you_mean
from fedsim.seeding import numpy_rng

__all__ = ["PARTITIONS", "Partition", "make_partition"]

PARTITIONS: dict[str, Callable[[Ask], Draft | Population]] = {
    **SCHEMES,
    "dirichlet_drawn": dirichlet_drawn,
}
"""Name of a scheme -> the function that makes it (see `fedsim.data.partition.schemes`)."""

_MOST_SHOWN = 1000


@dataclass(frozen=True, eq=False)
class Partition:
    """Which training samples each client holds.

    Attributes:
        scheme: Name in `PARTITIONS`.
        indices: One sorted int64 array per client, rows of the training split; disjoint, but for
            `dirichlet_drawn`, whose arrays are drawn when they are asked for.
        label_counts: int64 (num_shown, num_classes): of all clients, or of the first 1,000 of
            clients that are drawn, who are as good a sample as any.
        unused: int64, sorted rows that no client holds (only `longtail` leaves any).
        log: What was done beyond the plain scheme: samples moved, clients merged, options unused.
        statistics: How non-IID these clients are.
    """

    scheme: str
    indices: Sequence[np.ndarray]
    label_counts: np.ndarray
    unused: np.ndarray
    log: tuple[str, ...]
    statistics: PartitionStatistics

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.indices)

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each client, int64 (num_shown,)."""
        return np.asarray(self.label_counts.sum(axis=1))


def make_partition(
    labels: np.ndarray,
    *,
    scheme: str,
    rng: np.random.Generator | int,
    num_clients: int | None = None,
    dirichlet_alpha: float | None = None,
    classes_per_client: int | None = None,
    samples_per_client: int | None = None,
    min_samples: int = 1,
    size_sigma: float | None = None,
    imbalance_factor: float | None = None,
    clients: np.ndarray | None = None,
    domains: np.ndarray | None = None,
    num_classes: int | None = None,
) -> Partition:
    """Split samples over clients.

    Args:
        labels: int (N,), 0 to num_classes - 1.
        scheme: Name in `PARTITIONS`.
        rng: A generator, or the partition's seed.
        num_clients: 1 to N; any number for `dirichlet_drawn`. May be None for `natural`: all
            recorded clients.
        dirichlet_alpha: Concentration, above 0; small = skewed. For the four `dirichlet_*` and
            `longtail`; label skew within `domain`; sizes of `quantity`.
        classes_per_client: 1 to num_classes, for `pathological`.
        samples_per_client: Mean, 1 to N, for `dirichlet_drawn`.
        min_samples: Smallest client, 1 or more; met by moving samples from the largest clients.
        size_sigma: Standard deviation of log sizes, 0 or more, for `quantity` and
            `dirichlet_drawn`.
        imbalance_factor: Largest over smallest class, 1 or more, for `longtail`.
        clients: int (N,), recorded client of each sample, for `natural`.
        domains: int (N,), domain of each sample, for `domain`.
        num_classes: Columns of `label_counts`; None = largest label + 1.

    Returns:
        The partition: the same for the same arguments.

    Raises:
        ConfigError: An option is missing, unknown or outside its range.
        PartitionError: The data cannot be split that way; the message shows the arithmetic.

    >>> labels = np.arange(100) % 10
    >>> split = make_partition(labels, scheme="iid", num_clients=4, rng=0)
    >>> split.sizes.tolist(), split.statistics.size_gini
    ([25, 25, 25, 25], 0.0)
    >>> skewed = make_partition(labels, scheme="pathological", num_clients=5,
    ...                         classes_per_client=2, rng=0)
    >>> skewed.statistics.effective_classes
    2.0
    >>> make_partition(labels, scheme="iid", num_clients=101, rng=0)
    Traceback (most recent call last):
    fedsim.errors.PartitionError: 101 clients x min_samples 1 = 101 samples, but there are 100: \
lower num_clients or min_samples
    """
    if scheme not in PARTITIONS:
        raise ConfigError(f"unknown partition {scheme!r}: {did_you_mean(scheme, PARTITIONS)}")
    options = {
        "dirichlet_alpha": dirichlet_alpha,
        "classes_per_client": classes_per_client,
        "samples_per_client": samples_per_client,
        "size_sigma": size_sigma,
        "imbalance_factor": imbalance_factor,
    }
    _check_options(options, num_clients, min_samples)
    labels = _check_rows(labels, "labels", None)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    elif labels.max() >= num_classes:
        raise PartitionError(f"label {labels.max()} with num_classes {num_classes}")
    if clients is not None:
        clients = _check_rows(clients, "clients", len(labels))
    if domains is not None:
        domains = _check_rows(domains, "domains", len(labels))
    if num_clients is None:
        if scheme != "natural":
            raise ConfigError(f"partition {scheme!r} needs num_clients: set it")
        num_clients = 1 if clients is None else len(np.unique(clients))
    if scheme != "dirichlet_drawn" and num_clients * min_samples > len(labels):
        raise PartitionError(
            f"{num_clients} clients x min_samples {min_samples} = {num_clients * min_samples} "
            f"samples, but there are {len(labels)}: lower num_clients or min_samples"
        )
    generator = numpy_rng(int(rng), "partition") if isinstance(rng, int | np.integer) else rng
    ask = Ask(
        labels=labels,
        num_classes=num_classes,
        num_clients=num_clients,
        rng=generator,
        min_samples=min_samples,
        dirichlet_alpha=dirichlet_alpha,
        classes_per_client=classes_per_client,
        samples_per_client=samples_per_client,
        size_sigma=size_sigma,
        imbalance_factor=imbalance_factor,
        clients=clients,
        domains=domains,
    )
    draft = PARTITIONS[scheme](ask)
    extra = [name for name, value in options.items() if value is not None]
    unread = [name for name in extra if name not in SCHEME_OPTIONS.get(scheme, frozenset())]
    log = [f"{name} has no effect on partition {scheme!r}" for name in unread]
    if isinstance(draft, Population):
        return _described(scheme, ask, draft, log)
    return _finish(scheme, ask, draft, log)


def _finish(scheme: str, ask: Ask, draft: Draft, log: list[str]) -> Partition:
    """Meet the minimum size, then count."""
    cells = ask.labels if draft.cells is None else draft.cells
    owner = repair(draft.owner, cells, ask.num_clients, ask.min_samples, ask.rng, draft.allowed)
    counts = _count(owner, ask)
    log = [*draft.log, *log]
    num_moved = int((owner != draft.owner).sum())
    if num_moved:
        log.append(_tell(ask, _count(draft.owner, ask), counts, num_moved))
        if draft.allowed is not None:
            foreign = int((~draft.allowed[owner, cells] & (owner >= 0)).sum())
            if foreign:
                log.append(f"{foreign} of them are of classes their new client was not dealt")
    order = np.argsort(owner, kind="stable")  # rows of one client together, ascending
    edges = np.searchsorted(owner[order], np.arange(ask.num_clients + 1))
    parts = tuple(order[a:b] for a, b in pairwise(edges))
    unused = order[: edges[0]]
    statistics = partition_statistics(counts, num_moved=num_moved, num_unused=len(unused))
    return Partition(scheme, parts, counts, unused, tuple(log), statistics)


def _described(scheme: str, ask: Ask, drawn: Population, log: list[str]) -> Partition:
    """A population by its first clients."""
    rows = drawn[:_MOST_SHOWN]
    counts = np.stack([np.bincount(ask.labels[r], minlength=ask.num_classes) for r in rows])
    total, different = int(counts.sum()), len(np.unique(np.concatenate(rows)))
    each = drawn.num_samples / len(ask.labels)
    clients = f"{each:,.0f}" if each >= 10 else f"{each:.2g}"
    first = f"the first {len(rows)} of {len(drawn)} clients" if len(drawn) > len(rows) else "all"
    told = (
        f"{scheme}: clients may hold the same samples, each of which {clients} clients hold on "
        f"average; {first} hold {total} samples, {different} of them different"
    )
    if len(drawn) > len(rows):
        told += "; statistics and label counts are theirs"
    none = np.empty(0, dtype=np.int64)
    return Partition(scheme, drawn, counts, none, (told, *log), partition_statistics(counts))


def _tell(ask: Ask, before: np.ndarray, after: np.ndarray, num_moved: int) -> str:
    """One line on what the repair changed."""
    sizes = before.sum(axis=1)
    distances = [total_variation(counts)[sizes > 0].mean() for counts in (before, after)]
    return (
        f"min_samples {ask.min_samples}: moved {num_moved} samples "
        f"({num_moved / sizes.sum():.2%}) into {(sizes < ask.min_samples).sum()} clients, "
        f"{(sizes == 0).sum()} of them empty; mean total variation of the clients that had "
        f"samples {distances[0]:.4f} -> {distances[1]:.4f}"
    )


def _count(owner: np.ndarray, ask: Ask) -> np.ndarray:
    """Label counts (n, C) of the used samples."""
    used = owner >= 0
    flat = owner[used] * ask.num_classes + ask.labels[used]
    counts = np.bincount(flat, minlength=ask.num_clients * ask.num_classes)
    return counts.reshape(ask.num_clients, ask.num_classes)


def _check_options(options: dict[str, Any], num_clients: int | None, min_samples: int) -> None:
    """Refuse numbers outside their range, all of them at once."""
    whole_numbers = {"num_clients": num_clients, "min_samples": min_samples}
    for name in ("classes_per_client", "samples_per_client"):
        whole_numbers[name] = options[name]
    at_least = dict.fromkeys(("classes_per_client", "samples_per_client", "imbalance_factor"), 1)
    at_least["size_sigma"] = 0
    problems = [
        f"{name} is {value!r}: it must be a whole number"
        for name, value in whole_numbers.items()
        if value is not None and not isinstance(value, int | np.integer)
    ]
    for name, value in options.items():
        if value is None:
            continue
        if name == "dirichlet_alpha":
            if not (math.isfinite(value) and value > 0):
                problems.append(f"dirichlet_alpha is {value}: it must be above 0, e.g. 0.1")
        elif not (math.isfinite(value) and value >= at_least[name]):
            problems.append(f"{name} is {value}: it must be {at_least[name]} or more")
    if num_clients is not None and num_clients < 1:
        problems.append(f"num_clients is {num_clients}: it must be 1 or more")
    if min_samples < 1:
        problems.append(f"min_samples is {min_samples}: a client needs 1 sample or more")
    if problems:
        raise ConfigError(problems)


def _check_rows(values: np.ndarray, name: str, count: int | None) -> np.ndarray:
    """One non-negative integer per sample, as int64."""
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise PartitionError(f"{name} are {values.dtype} {values.shape}: give integers, (N,)")
    if count is not None and len(values) != count:
        raise PartitionError(f"{len(values)} {name} for {count} labels")
    if not len(values):
        raise PartitionError("there are no samples to split")
    if name == "labels" and values.min() < 0:
        raise PartitionError(f"labels start at {values.min()}: they must be 0 or more")
    return values.astype(np.int64)
