"""Meeting a minimum client size by moving samples, not by drawing again until it fits.

Redrawing has no bound: with a small concentration or many clients it never ends, and the draws that
it accepts no longer follow the law that was asked for. Moving the missing samples ends after at
most `min_samples * num_clients` moves and says what it changed.
"""

from __future__ import annotations

import numpy as np


def repair(
    owner: np.ndarray,
    cells: np.ndarray,
    num_clients: int,
    min_samples: int,
    rng: np.random.Generator,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Give every client `min_samples` samples, taken from the largest clients.

    The largest client gives first, samples of a cell (label, or domain and label) which the
    receiver already holds before others, then its commonest cell: this disturbs the label laws
    least. No client falls below the minimum by giving. With `allowed`, samples of allowed cells
    are moved as long as any client can spare one.

    Args:
        owner: int (N,), client of each sample, -1 = unused (never moved).
        cells: int (N,), cell of each sample, 0 or more.
        num_clients: Number of clients.
        min_samples: 1 or more; `min_samples * num_clients` used samples must exist.
        rng: Chooses which samples of a cell move.
        allowed: bool (num_clients, num_cells), cells each client should hold; None = any.

    Returns:
        int64 (N,), the new owners (`owner` itself when nothing had to move).

    >>> owner = np.array([0, 0, 0, 0, 1, 2])
    >>> repair(owner, np.zeros(6, int), 3, 2, np.random.default_rng(0)).tolist().count(1)
    2
    """
    used = owner >= 0
    sizes = np.bincount(owner[used], minlength=num_clients)
    needy = np.flatnonzero(sizes < min_samples)
    if not len(needy):
        return owner
    num_cells = int(cells.max()) + 1 if allowed is None else allowed.shape[1]
    flat = cells[used] * num_clients + owner[used]
    counts = np.bincount(flat, minlength=num_cells * num_clients).reshape(num_cells, num_clients)

    # samples of (cell, client) lie together, in random order; `taken` is how many have left
    order = np.lexsort((rng.random(len(owner)), owner, cells))
    order = order[used[order]]
    starts = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
    taken = np.zeros(counts.shape, dtype=np.int64)
    new_owner = owner.copy()

    for client in needy[np.argsort(sizes[needy], kind="stable")]:
        wanted = None if allowed is None else np.flatnonzero(allowed[client])
        while sizes[client] < min_samples:
            donor, cell = _choose(client, counts, sizes, min_samples, wanted)
            spare = min(sizes[donor] - min_samples, min_samples - sizes[client])
            num = int(min(spare, counts[cell, donor]))
            first = starts[cell, donor] + taken[cell, donor]
            new_owner[order[first : first + num]] = client
            taken[cell, donor] += num
            for who, change in ((donor, -num), (client, num)):
                counts[cell, who] += change
                sizes[who] += change
    return new_owner


def _choose(
    client: int,
    counts: np.ndarray,
    sizes: np.ndarray,
    min_samples: int,
    wanted: np.ndarray | None,
) -> tuple[int, int]:
    """The client that gives next, and the cell of the sample."""
    if wanted is not None:
        can_give = counts[wanted].any(axis=0) & (sizes > min_samples)
        donor = int(np.argmax(np.where(can_give, sizes, -1)))
        if can_give[donor]:
            return donor, int(wanted[np.argmax(counts[wanted, donor])])
    donor = int(np.argmax(sizes))
    shared = np.where(counts[:, client] > 0, counts[:, donor], 0)
    return donor, int(np.argmax(shared if shared.any() else counts[:, donor]))
