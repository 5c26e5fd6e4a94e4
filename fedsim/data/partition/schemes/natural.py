"""The clients recorded in the data, in ascending order of their ids.

With fewer `num_clients` than ids, whole clients are merged: the largest first, each into the
group that is smallest so far. With more, there is no answer.
"""

from __future__ import annotations

import numpy as np

from fedsim.data.partition.sampling import Ask, Draft
from fedsim.errors import PartitionError

COUNTS_CLIENTS = True


def assign(ask: Ask, options: object) -> Draft:
    """Take the recorded clients, merged where fewer are asked for."""
    if ask.clients is None:
        raise PartitionError("partition 'natural': this data set has no client ids")
    ids, which = np.unique(ask.clients, return_inverse=True)
    num = ask.num_clients
    if num > len(ids):
        raise PartitionError(
            f"partition 'natural': num_clients is {num}, but the data has {len(ids)} clients"
        )
    if num == len(ids):
        return Draft(which.astype(np.int64))
    sizes = np.bincount(which)
    group, filled = np.empty(len(ids), dtype=np.int64), np.zeros(num, dtype=np.int64)
    for client in np.argsort(-sizes, kind="stable"):
        group[client] = np.argmin(filled)
        filled[group[client]] += sizes[client]
    return Draft(group[which], (f"natural: {len(ids)} recorded clients merged into {num}",))
