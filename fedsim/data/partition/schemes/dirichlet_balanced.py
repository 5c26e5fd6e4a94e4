"""As `dirichlet_label`, but a client that holds N / n samples gets no more.

The scheme of FedDGM's code (build_client_dataset_dirichlet), as in NIID-Bench: class after
class, the shares of full clients are set to zero and the rest renormalised. The original then
draws everything again until each client has 10 samples; here `min_samples` moves samples.
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
    split_counts,
)

Options = DirichletOptions


def assign(ask: Ask, options: Options) -> Draft:
    """Share out one class after the other among the clients that are not full."""
    num, total = ask.num_clients, len(ask.labels)
    logs = log_dirichlet(ask.rng, np.full(num, options.dirichlet_alpha), ask.num_classes)
    counts = np.zeros((num, ask.num_classes), dtype=np.int64)
    sizes = np.zeros(num, dtype=np.int64)
    for label, size in enumerate(ask.class_sizes):
        if size:
            open_clients = np.where(sizes < total / num, logs[label], -np.inf)
            counts[:, label] = split_counts(ask.rng, int(size), softmax(open_clients))
            sizes += counts[:, label]
    return hand_out(ask, counts)
