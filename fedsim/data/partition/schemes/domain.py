"""Each client holds samples of one domain; a domain may be shared by several clients.

Feature skew as in FedCLIP (arXiv 2302.13485). Clients are given to domains in proportion to
the domain sizes, at least one each. Within a domain the split is IID, or by label with
`dirichlet_alpha` as in FedOTP (arXiv 2403.00041).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from fedsim.config.base import Section
from fedsim.data.partition.sampling import Ask, DirichletOptions, Draft
from fedsim.data.partition.schemes import dirichlet_label, iid
from fedsim.errors import PartitionError


class Options(Section):
    """A skew of labels within a domain, if any."""

    dirichlet_alpha: float | None = Field(None, gt=0)
    """Concentration of the labels within a domain; null for none."""


def assign(ask: Ask, options: Options) -> Draft:
    """Give clients to domains, then split every domain over its clients."""
    if ask.domains is None:
        raise PartitionError("partition 'domain': this data set has no domains")
    names, which = np.unique(ask.domains, return_inverse=True)
    num_domains, num = len(names), ask.num_clients
    if num < num_domains:
        raise PartitionError(
            f"partition 'domain': {num} clients cannot cover {num_domains} domains with one "
            f"domain each: set num_clients to {num_domains} or more"
        )
    sizes = np.bincount(which)
    shares = np.ones(num_domains, dtype=np.int64)
    for _ in range(num - num_domains):  # the domain whose clients would be largest gets one more
        shares[np.argmax(sizes / shares)] += 1
    for size, clients, name in zip(sizes, shares, names, strict=True):
        if clients * ask.min_samples > size:
            raise PartitionError(
                f"partition 'domain': domain {name} has {size} samples for {clients} clients x "
                f"min_samples {ask.min_samples} = {clients * ask.min_samples}: ask for less"
            )
    owner = np.empty(len(ask.labels), dtype=np.int64)
    for index, first in enumerate(np.cumsum(shares) - shares):
        rows = np.flatnonzero(which == index)
        part = replace(ask, labels=ask.labels[rows], num_clients=int(shares[index]))
        if options.dirichlet_alpha is None:
            own = iid.assign(part, options).owner
        else:
            skew = DirichletOptions(dirichlet_alpha=options.dirichlet_alpha)
            own = dirichlet_label.assign(part, skew).owner
        owner[rows] = first + own
    holds = np.repeat(np.arange(num_domains), shares)
    cells = which * ask.num_classes + ask.labels
    allowed = np.repeat(holds[:, None] == np.arange(num_domains), ask.num_classes, axis=1)
    told = ", ".join(f"{name}: {count}" for name, count in zip(names, shares, strict=True))
    return Draft(owner, (f"domain: clients per domain {told}",), cells, allowed)
