"""Which clients take part in a round, and which worker trains which groups."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence

from fedsim.engine.batching import Group
from fedsim.seeding import numpy_rng


def sample_cohort(num_clients: int, cohort_size: int, seed: int, round: int) -> list[int]:
    """Clients of a round, without replacement, keyed by (seed, round) alone.

    >>> sample_cohort(10, 3, seed=0, round=1) == sample_cohort(10, 3, seed=0, round=1)
    True
    """
    rng = numpy_rng(seed, "cohort", round)
    return [int(c) for c in rng.choice(num_clients, size=cohort_size, replace=False, shuffle=True)]


def assign(groups: Sequence[Group], paces: Sequence[float]) -> list[list[Group]]:
    """Longest groups first, each to the worker that would finish it first (Graham 1969).

    Never changes results.

    Args:
        groups: The groups of a cohort.
        paces: Time that each worker takes per sample; only their ratios matter.

    Returns:
        One list of groups per worker; workers without work get an empty list.
    """
    plan: list[list[Group]] = [[] for _ in paces]
    loads = [0] * len(paces)
    for group in sorted(groups, key=lambda g: (-g.num_samples, g.position)):
        ends = [(load + group.num_samples) * pace for load, pace in zip(loads, paces, strict=True)]
        worker = ends.index(min(ends))
        plan[worker].append(group)
        loads[worker] += group.num_samples
    return plan


class Paces:
    """How long each worker takes per sample, compared with the others: the median of a few rounds.

    A worker's first round does not count, because it loads data. A worker without work in a round
    counts as an average one again; otherwise it would never get any.
    """

    def __init__(self, num_workers: int) -> None:
        self._seen: list[deque[float]] = [deque(maxlen=_ROUNDS_KEPT) for _ in range(num_workers)]
        self._warm = [False] * num_workers

    def learn(self, took: Mapping[int, tuple[int, float]]) -> None:
        """Take in each worker's samples and seconds of a round. One worker alone says nothing."""
        each = {w: s / n for w, (n, s) in took.items() if n and s > 0 and self._warm[w]}
        for worker, seen in enumerate(self._seen):
            self._warm[worker] |= worker in took
            if worker not in took:
                seen.clear()
        if len(each) > 1:
            mean = sum(each.values()) / len(each)
            for worker, pace in each.items():
                self._seen[worker].append(pace / mean)

    def forget(self, worker: int) -> None:
        """Start anew with a worker, because another process has taken its place."""
        self._seen[worker].clear()
        self._warm[worker] = False

    def now(self) -> list[float]:
        """Time per sample of every worker. One with no history gets the mean of the others."""
        known = [statistics.median(seen) for seen in self._seen if seen]
        mean = sum(known) / len(known) if known else 1.0
        return [statistics.median(seen) if seen else mean for seen in self._seen]


_ROUNDS_KEPT = 5
