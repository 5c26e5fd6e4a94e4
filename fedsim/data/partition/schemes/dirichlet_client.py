"""Clients of equal size, each with its own label law from Dir(alpha * C * p).

p is the global label law, so that classes of equal size give Dir(alpha * 1_C). Hsu et al.
2019 (arXiv 1909.06335) write Dir(alpha_Hsu * p): alpha_Hsu = C * alpha. Samples are drawn
without replacement, client after client in random order; a class that has run out is struck
from the law, which stays Dirichlet on the others. All samples are used, so the last clients
take the rest.
"""

from __future__ import annotations

import numpy as np

from fedsim.data.partition.sampling import (
    Ask,
    DirichletOptions,
    Draft,
    hand_out,
    log_dirichlet,
    softmax,
)

Options = DirichletOptions


def assign(ask: Ask, options: Options) -> Draft:
    """Fill one client after the other from its own law."""
    left = ask.class_sizes
    total, num = len(ask.labels), ask.num_clients
    present = left > 0
    prior = np.where(present, left, 1) / total * ask.num_classes * options.dirichlet_alpha
    logs = np.where(present, log_dirichlet(ask.rng, prior, num), -np.inf)
    counts = np.zeros((num, ask.num_classes), dtype=np.int64)
    order = ask.rng.permutation(num)
    sizes = total // num + (np.arange(num) < total % num)
    for client, size in zip(order, sizes, strict=True):
        missing = int(size)
        while missing:  # every pass fills the client or empties a class
            law = softmax(np.where(left > 0, logs[client], -np.inf))
            drawn = np.minimum(ask.rng.multinomial(missing, law), left)
            counts[client] += drawn
            left -= drawn
            missing -= int(drawn.sum())
    return hand_out(ask, counts)
