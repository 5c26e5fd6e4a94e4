"""Which clients take part in a round, and which worker trains which groups."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from fedsim.engine.batching import Group
from fedsim.seeding import numpy_rng


def sample_cohort(num_clients: int, cohort_size: int, seed: int, round: int) -> list[int]:
    """Clients of a round, without replacement, keyed by (seed, round) alone.

    >>> sample_cohort(10, 3, seed=0, round=1) == sample_cohort(10, 3, seed=0, round=1)
    True
    """
    rng = numpy_rng(seed, "cohort", round)
    return [int(c) for c in rng.choice(num_clients, size=cohort_size, replace=False, shuffle=True)]


def assign(groups: Sequence[Group], num_workers: int) -> list[list[Group]]:
    """Longest groups first, each to the least-loaded worker (Graham 1969). Never changes results.

    Returns:
        One list of groups per worker; workers without work get an empty list.
    """
    loads = [(0, worker) for worker in range(num_workers)]
    plan: list[list[Group]] = [[] for _ in range(num_workers)]
    for group in sorted(groups, key=lambda g: (-g.num_samples, g.position)):
        load, worker = heapq.heappop(loads)
        plan[worker].append(group)
        heapq.heappush(loads, (load + group.num_samples, worker))
    return plan
