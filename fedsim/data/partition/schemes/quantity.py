"""Unequal client sizes, labels IID: log-normal sizes, or Dirichlet ones.

With `size_sigma`, sizes are in proportion to exp(N(0, sigma^2)) (FedLab); with
`dirichlet_alpha`, to one draw from Dir(alpha * 1_n) (NIID-Bench). Set one of the two.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from fedsim.config.base import Section
from fedsim.data.partition.sampling import Ask, Draft, log_dirichlet, softmax, split_counts


class Options(Section):
    """A spread of sizes: one of the two."""

    dirichlet_alpha: float | None = Field(None, gt=0)
    """Concentration of the sizes."""
    size_sigma: float | None = Field(None, ge=0)
    """Log-normal spread of client sizes, instead of `dirichlet_alpha`."""

    @model_validator(mode="after")
    def _one(self) -> Options:
        if (self.dirichlet_alpha is None) == (self.size_sigma is None):
            raise ValueError(
                "scheme 'quantity' needs one of dirichlet_alpha and size_sigma: set one"
            )
        return self


def assign(ask: Ask, options: Options) -> Draft:
    """Draw sizes, then shuffle the rows and cut them."""
    alpha, sigma, num = options.dirichlet_alpha, options.size_sigma, ask.num_clients
    if sigma is not None:
        shares = softmax(sigma * ask.rng.standard_normal(num))
        note = f"quantity: log-normal sizes, size_sigma {sigma:g}"
    else:
        assert alpha is not None
        shares = softmax(log_dirichlet(ask.rng, np.full(num, alpha), 1)[0])
        note = f"quantity: Dirichlet sizes, dirichlet_alpha {alpha:g}"
    owner = np.empty(len(ask.labels), dtype=np.int64)
    sizes = split_counts(ask.rng, len(owner), shares)
    owner[ask.rng.permutation(len(owner))] = np.repeat(np.arange(num), sizes)
    return Draft(owner, (note,))
