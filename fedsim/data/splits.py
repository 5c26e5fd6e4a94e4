"""Ways to cut rows into parts: fixed carves of a data set, few-shot draws, client hold-outs.

Carves of official data (`stable_order` and what uses it) depend on integer arithmetic alone, so
that they stay the same on every machine and with every version of NumPy.
"""

from __future__ import annotations

import numpy as np

from fedsim.errors import ConfigError

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def stable_order(seed: int, count: int) -> np.ndarray:
    """A pseudo-random order of `range(count)` that no library version can change.

    Sorts the indices by the splitmix64 hash of (seed, index) (Steele et al. 2014).

    Args:
        seed: From `fedsim.seeding.derive`.
        count: How many indices, 0 or more.

    Returns:
        int64 (count,), a permutation.

    >>> stable_order(0, 5).tolist()
    [2, 4, 1, 0, 3]
    """
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    z += np.uint64(seed & (2**64 - 1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable").astype(np.int64)


def take_per_group(groups: np.ndarray, quota: np.ndarray, seed: int) -> np.ndarray:
    """Choose `quota[g]` rows of every group g, in `stable_order`.

    Args:
        groups: int (N,), group of each row, 0 to len(quota) - 1.
        quota: int (num_groups,), rows wanted; a group with fewer rows gives all it has.
        seed: From `fedsim.seeding.derive`.

    Returns:
        bool (N,), true for the chosen rows.

    >>> take_per_group(np.array([0, 0, 0, 1, 1]), np.array([2, 1]), seed=1).sum().item()
    3
    """
    count = len(groups)
    rank = np.empty(count, dtype=np.int64)
    rank[stable_order(seed, count)] = np.arange(count)
    order = np.lexsort((rank, groups))
    sizes = np.bincount(groups, minlength=len(quota))
    starts = np.cumsum(sizes) - sizes
    position = np.arange(count) - starts[groups[order]]
    chosen = np.zeros(count, dtype=bool)
    chosen[order] = position < quota[groups[order]]
    return chosen


def carve(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose about `fraction` of the rows of every group, to become another split.

    Each group gives round(fraction * size) rows, but at least one and never its last: a group of
    one row stays where it is.

    Args:
        groups: int (N,), what to stratify by (the label, or domain and label).
        fraction: In (0, 1).
        seed: From `fedsim.seeding.derive`.

    Returns:
        bool (N,), true for the rows carved out.

    >>> carve(np.array([0] * 10 + [1] * 5 + [2]), 0.2, seed=0).astype(int).tolist()
    [0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    """
    sizes = np.bincount(groups)
    quota = np.floor(sizes * fraction + 0.5).astype(np.int64)
    quota = np.minimum(np.maximum(quota, 1), np.maximum(sizes - 1, 0))
    return take_per_group(groups, quota, seed)


def proportional_quota(sizes: np.ndarray, total: int) -> np.ndarray:
    """Share `total` over groups in proportion to their sizes, at least one to each non-empty one.

    Largest remainders, ties to the first group.

    Args:
        sizes: int (num_groups,).
        total: From the number of non-empty groups to `sizes.sum()`.

    Returns:
        int64 (num_groups,), at most `sizes`, sums to `total`.

    >>> proportional_quota(np.array([60, 30, 1, 0]), 10).tolist()
    [6, 3, 1, 0]
    """
    share = sizes * (total / max(int(sizes.sum()), 1))
    quota = np.maximum(np.floor(share).astype(np.int64), sizes > 0)
    while quota.sum() < total:
        quota[np.argmax(np.where(quota < sizes, share - quota, -np.inf))] += 1
    while quota.sum() > total:
        quota[np.argmax(np.where(quota > 1, quota - share, -np.inf))] -= 1
    return np.asarray(quota)


def holdout(
    indices: np.ndarray,
    labels: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
    *,
    min_samples: int = 5,
) -> tuple[np.ndarray, np.ndarray]:
    """Part of one client's data kept out of its training, to choose hyper-parameters on.

    A systematic sample through the client's rows sorted by label (random within a label): class
    shares of the held part are those of the client to within one sample a class.

    Args:
        indices: int (num_samples,), the client's rows.
        labels: int (N,), labels of *all* rows, indexed by `indices`.
        fraction: Share to hold out, in [0, 1).
        rng: The client's own stream, e.g. `numpy_rng(seed, "holdout", client_id)`.
        min_samples: A client with fewer samples holds out none.

    Returns:
        `(fit, held)`, sorted, disjoint, together `indices`; `fit` keeps at least one sample.

    Raises:
        ConfigError: `fraction` is outside [0, 1).

    >>> rng = np.random.default_rng(0)
    >>> fit, held = holdout(np.arange(10), np.array([0] * 5 + [1] * 5), 0.2, rng)
    >>> len(fit), len(held), (held // 5).tolist()
    (8, 2, [0, 1])
    >>> holdout(np.array([4, 7]), np.zeros(9, int), 0.5, rng)[1].tolist()
    []
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"client_holdout is {fraction}: choose a share in [0, 1), e.g. 0.2")
    indices = np.sort(np.asarray(indices, dtype=np.int64))
    count = len(indices)
    num_held = min(int(np.floor(fraction * count + 0.5)), count - 1)
    if count < min_samples or num_held <= 0:
        return indices, indices[:0]
    order = np.lexsort((rng.random(count), labels[indices]))
    steps = np.floor((np.arange(num_held) + rng.random()) * (count / num_held)).astype(np.int64)
    held = np.zeros(count, dtype=bool)
    held[order[np.minimum(steps, count - 1)]] = True
    return indices[~held], indices[held]
