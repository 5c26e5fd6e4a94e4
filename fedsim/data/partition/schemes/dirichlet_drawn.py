"""Clients that draw their size and label law, and their samples within the data.

Sizes are log-normal with mean `samples_per_client` and spread `size_sigma` (0 by default);
label laws are Dir(alpha * C * p), as in `dirichlet_client`. In the limit of few clients it is
that scheme without its constraint that all samples are used once.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedsim.data.partition.population import Population
from fedsim.data.partition.sampling import Ask, DirichletOptions
from fedsim.errors import PartitionError

SHARES_SAMPLES = True


class Options(DirichletOptions):
    """The law of sizes and labels."""

    samples_per_client: int = Field(gt=0)
    """Mean of the clients' sizes."""
    size_sigma: float = Field(0.0, ge=0)
    """Log-normal spread of client sizes."""


def assign(ask: Ask, options: Options) -> Population:
    """The law of the clients; none of them is drawn yet."""
    mean, total = options.samples_per_client, len(ask.labels)
    if mean > total:
        raise PartitionError(
            f"dirichlet_drawn: samples_per_client is {mean:g}, but the data has {total} samples, "
            f"each of which a client holds once at most"
        )
    if mean < ask.min_samples:
        raise PartitionError(
            f"dirichlet_drawn: samples_per_client is {mean:g}, less than min_samples "
            f"{ask.min_samples}"
        )
    sizes = ask.class_sizes
    order = np.argsort(ask.labels, kind="stable")
    return Population(
        num_clients=ask.num_clients,
        rows_of=tuple(np.split(order, np.cumsum(sizes)[:-1])),
        concentration=sizes / total * ask.num_classes * options.dirichlet_alpha,
        samples_per_client=float(mean),
        size_sigma=options.size_sigma,
        min_samples=ask.min_samples,
        seed=int(ask.rng.integers(2**63)),
    )
