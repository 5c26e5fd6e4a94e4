"""How non-IID a partition is, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PartitionStatistics:
    """Figures that tell two partitions apart.

    Attributes:
        total_variation: Mean over clients of the distance of their label law to the law of all
            samples in use, in [0, 1): 0 = every client sees the global mixture.
        effective_classes: Mean over clients of exp(entropy of the label law), in
            [1, num_classes].
        size_gini: Gini coefficient of the client sizes, in [0, 1): 0 = all the same size.
        size_min: Samples of the smallest client.
        size_median: Median samples of a client.
        size_max: Samples of the largest client.
        num_moved: Samples moved to meet the minimum size.
        num_unused: Samples that no client holds.
    """

    total_variation: float
    effective_classes: float
    size_gini: float
    size_min: int
    size_median: float
    size_max: int
    num_moved: int
    num_unused: int


def total_variation(label_counts: np.ndarray) -> np.ndarray:
    """Total variation distance of each client's label law to the global one.

    Args:
        label_counts: int (num_clients, num_classes).

    Returns:
        float64 (num_clients,), in [0, 1); 0 for a client without samples.

    >>> total_variation(np.array([[5, 5], [10, 0], [0, 10]])).tolist()
    [0.0, 0.5, 0.5]
    """
    laws = label_counts / np.maximum(label_counts.sum(1, keepdims=True), 1)
    overall = label_counts.sum(0) / max(int(label_counts.sum()), 1)
    distance = np.abs(laws - overall).sum(1) / 2
    return np.where(label_counts.sum(1) > 0, distance, 0.0)


def effective_classes(label_counts: np.ndarray) -> np.ndarray:
    """Exponential of the entropy of each client's label law, (num_clients,).

    >>> effective_classes(np.array([[5, 5], [10, 0]])).tolist()
    [2.0, 1.0]
    """
    laws = label_counts / np.maximum(label_counts.sum(1, keepdims=True), 1)
    logs = np.log(np.where(laws > 0, laws, 1.0))
    entropy: np.ndarray = -(laws * logs).sum(1)
    return np.asarray(np.exp(entropy))


def gini(sizes: np.ndarray) -> float:
    """Gini coefficient: mean absolute difference of all pairs over twice the mean.

    >>> gini(np.array([1, 1, 1])), round(gini(np.array([0, 0, 9])), 3)
    (0.0, 0.667)
    """
    ordered = np.sort(sizes).astype(np.float64)
    count, total = len(ordered), float(ordered.sum())
    if total == 0:
        return 0.0
    return float(((2 * np.arange(1, count + 1) - count - 1) * ordered).sum() / (count * total))


def partition_statistics(
    label_counts: np.ndarray, *, num_moved: int = 0, num_unused: int = 0
) -> PartitionStatistics:
    """All figures of a partition.

    Args:
        label_counts: int (num_clients, num_classes).
        num_moved: Samples moved by the repair.
        num_unused: Samples that no client holds.

    >>> partition_statistics(np.array([[5, 5], [10, 0], [0, 10]])).size_max
    10
    """
    sizes = label_counts.sum(1)
    return PartitionStatistics(
        total_variation=float(total_variation(label_counts).mean()),
        effective_classes=float(effective_classes(label_counts).mean()),
        size_gini=gini(sizes),
        size_min=int(sizes.min()),
        size_median=float(np.median(sizes)),
        size_max=int(sizes.max()),
        num_moved=num_moved,
        num_unused=num_unused,
    )
