"""Splitting the training samples over clients.

    from fedsim.data import load_dataset, make_partition
    data = load_dataset("digits")
    split = make_partition(data.train.labels, scheme="dirichlet_label", num_clients=10,
                           dirichlet_alpha=0.1, rng=0)

Every scheme is seeded and always ends. All schemes but `dirichlet_drawn` are disjoint: they meet a
minimum client size by moving samples, and the partition's log says what that changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fedsim.config.problems import section_of
from fedsim.config.sections import PartitionConfig
from fedsim.data.partition.heterogeneity import (
    PartitionStatistics,
    partition_statistics,
    total_variation,
)
from fedsim.data.partition.population import Population
from fedsim.data.partition.repair import repair
from fedsim.data.partition.sampling import Ask, Draft
from fedsim.errors import ConfigError, PartitionError
from fedsim.seeding import numpy_rng

_MOST_SHOWN = 1000


@dataclass(frozen=True, eq=False)
class Partition:
    """Which training samples each client holds.

    Attributes:
        scheme: Name in `fedsim.config.families.SCHEMES`.
        indices: One sorted int64 array per client, rows of the training split; disjoint, but for
            `dirichlet_drawn`, whose arrays are drawn when they are asked for.
        label_counts: int64 (num_shown, num_classes), of all clients; of a drawn population, of the
            first 1,000, which are as good a sample as any.
        unused: int64, sorted rows that no client holds (only `longtail` leaves any).
        log: Departures from the plain scheme: samples moved, clients merged, options unused.
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
    min_samples: int = 1,
    clients: np.ndarray | None = None,
    domains: np.ndarray | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> Partition:
    """Split samples over clients.

    Args:
        labels: int (N,), 0 to num_classes - 1.
        scheme: Name in `fedsim.config.families.SCHEMES`.
        rng: A generator, or the partition's seed.
        num_clients: 1 to N; any number for `dirichlet_drawn`. May be None for `natural`: all
            recorded clients.
        min_samples: Smallest client, 1 or more; met by moving samples from the largest clients.
        clients: int (N,), recorded client of each sample, for `natural`.
        domains: int (N,), domain of each sample, for `domain`.
        num_classes: Columns of `label_counts`; None = largest label + 1.
        options: The scheme's own settings, such as `dirichlet_alpha` (see its file in
            `fedsim.data.partition.schemes`). None stands for a default.

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
    given = {"scheme": scheme, "min_samples": min_samples, **options}
    count = num_clients
    if count is None:
        count = 1 if clients is None else len(np.unique(clients))
    settings = section_of(PartitionConfig, num_clients=count, **given)
    if num_clients is None and not settings.counts_clients:
        raise ConfigError(f"partition {scheme!r} needs num_clients: set it")
    generator = numpy_rng(int(rng), "partition") if isinstance(rng, int | np.integer) else rng
    return partition_rows(
        labels, settings, generator, clients=clients, domains=domains, num_classes=num_classes
    )


def partition_rows(
    labels: np.ndarray,
    settings: PartitionConfig,
    rng: np.random.Generator,
    *,
    clients: np.ndarray | None = None,
    domains: np.ndarray | None = None,
    num_classes: int | None = None,
) -> Partition:
    """`make_partition` for the section `partition`, whose `seed` is ignored."""
    labels = _check_rows(labels, "labels", None)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    elif labels.max() >= num_classes:
        raise PartitionError(f"label {labels.max()} with num_classes {num_classes}")
    if clients is not None:
        clients = _check_rows(clients, "clients", len(labels))
    if domains is not None:
        domains = _check_rows(domains, "domains", len(labels))
    scheme, num_clients, least = settings.scheme, settings.num_clients, settings.min_samples
    if not settings.shares_samples and num_clients * least > len(labels):
        raise PartitionError(
            f"{num_clients} clients x min_samples {least} = {num_clients * least} "
            f"samples, but there are {len(labels)}: lower num_clients or min_samples"
        )
    ask = Ask(labels, num_classes, num_clients, rng, least, clients, domains)
    draft = settings.module().assign(ask, settings.options())
    log = [f"{name} has no effect on partition {scheme!r}" for name in settings.unread()]
    if isinstance(draft, Population):
        return _described(scheme, ask, draft, log)
    _check_draft(scheme, ask, draft)
    return _finish(scheme, ask, draft, log)


def _check_draft(scheme: str, ask: Ask, draft: Draft) -> None:
    """Refuse a scheme's answer that is no owner for every sample."""
    owner = getattr(draft, "owner", None)
    if not isinstance(owner, np.ndarray) or owner.dtype.kind not in "iu":
        raise PartitionError(f"scheme {scheme!r} returned no Draft with int64 owners")
    if owner.shape != ask.labels.shape:
        raise PartitionError(
            f"scheme {scheme!r}: {owner.shape} owners for {len(ask.labels)} samples"
        )
    if owner.min() < -1 or owner.max() >= ask.num_clients:
        raise PartitionError(
            f"scheme {scheme!r}: owners {owner.min()} to {owner.max()}, but clients are 0 to "
            f"{ask.num_clients - 1}, and -1 is nobody"
        )


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
