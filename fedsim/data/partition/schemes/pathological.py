"""Each client holds `classes_per_client` classes; every class is held by someone.

McMahan et al. 2017 (arXiv 1602.05629) deal label-sorted shards; here classes are dealt, so
that the number per client is exact. Class uses differ by at most one. With
n * classes_per_client = C the class sets are disjoint (PromptFL's split).
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedsim.config.base import Section
from fedsim.data.partition.sampling import Ask, Draft, hand_out, split_counts
from fedsim.errors import PartitionError


class Options(Section):
    """A number of classes."""

    classes_per_client: int = Field(gt=0)
    """Classes each client holds."""


def assign(ask: Ask, options: Options) -> Draft:
    """Deal classes out, then share each class evenly among its holders."""
    each = options.classes_per_client
    present = np.flatnonzero(ask.class_sizes)
    num, num_classes = ask.num_clients, len(present)
    if each > num_classes:
        raise PartitionError(
            f"pathological: classes_per_client is {each}, but the data has {num_classes} classes"
        )
    slots = num * each
    if slots < num_classes:
        raise PartitionError(
            f"pathological: {num} clients x {each} classes = {slots} cannot cover {num_classes} "
            f"classes: set classes_per_client to {-(-num_classes // num)} or more"
        )
    quota = slots // num_classes + (ask.rng.permutation(num_classes) < slots % num_classes)
    allowed = np.zeros((num, ask.num_classes), dtype=bool)
    for client in range(num):  # taking the most wanted classes keeps the rest feasible
        take = np.lexsort((ask.rng.random(num_classes), -quota))[:each]
        allowed[client, present[take]] = True
        quota[take] -= 1
    counts = np.zeros((num, ask.num_classes), dtype=np.int64)
    for label in present:
        holders = np.flatnonzero(allowed[:, label])
        size = int(ask.class_sizes[label])
        counts[holders, label] = split_counts(ask.rng, size, np.ones(len(holders)))
    return hand_out(ask, counts, allowed=allowed)
