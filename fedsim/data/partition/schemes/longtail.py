"""A globally long-tailed set, then shared as in `dirichlet_label`.

Class c keeps at most n_max * imbalance_factor^(-c / (C - 1)) samples, at least one, with
n_max the size of the largest class (Cui et al. 2019, arXiv 1901.05555; federated in CReFF,
arXiv 2204.13399). The samples left over are unused.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedsim.data.partition.sampling import Ask, DirichletOptions, Draft, hand_out, label_counts
from fedsim.errors import PartitionError


class Options(DirichletOptions):
    """A concentration and an imbalance."""

    imbalance_factor: float = Field(ge=1)
    """Largest class over smallest class."""


def assign(ask: Ask, options: Options) -> Draft:
    """Thin the classes out, then share what is kept."""
    factor = options.imbalance_factor
    sizes = ask.class_sizes
    decay = factor ** (-np.arange(ask.num_classes) / max(ask.num_classes - 1, 1))
    keep = np.minimum(sizes, np.maximum(np.floor(sizes.max() * decay + 0.5).astype(np.int64), 1))
    need = ask.num_clients * ask.min_samples
    if keep.sum() < need:
        raise PartitionError(
            f"longtail: imbalance_factor {factor:g} keeps {keep.sum()} of {sizes.sum()} samples, "
            f"fewer than {ask.num_clients} clients x min_samples {ask.min_samples} = {need}"
        )
    note = f"longtail: {sizes.sum() - keep.sum()} of {sizes.sum()} samples are unused"
    return hand_out(ask, label_counts(ask, options.dirichlet_alpha, keep), (note,))
