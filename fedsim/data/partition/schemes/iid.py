"""A random permutation cut into equal parts; sizes differ by at most one."""

from __future__ import annotations

import numpy as np

from fedsim.data.partition.sampling import Ask, Draft


def assign(ask: Ask, options: object) -> Draft:
    """Shuffle the rows and deal them out in turn."""
    owner = np.empty(len(ask.labels), dtype=np.int64)
    owner[ask.rng.permutation(len(owner))] = np.arange(len(owner)) % ask.num_clients
    return Draft(owner)
