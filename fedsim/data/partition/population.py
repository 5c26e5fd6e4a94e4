"""A population of any number of simulated clients, each drawn when it is asked for.

    n clients, C classes, alpha = dirichlet_alpha, p = label law of the data

A disjoint split has to be made as a whole and gives n clients at most as many samples as there
are. Here client k is a stream of random numbers instead, derived from (seed, k): its number of
samples, its label law, and which samples of the data it holds. Clients draw independently of each
other, so they may hold the same samples; a client holds each sample at most once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from fedsim.data.partition.sampling import log_dirichlet, softmax
from fedsim.data.splits import carve
from fedsim.seeding import derive, numpy_rng

_SMALLEST_HOLDING_OUT = 5
"""Clients with fewer samples hold none out, as in a disjoint split."""


@dataclass(frozen=True, eq=False)
class Population(Sequence[np.ndarray]):
    """The rows of every client, drawn when asked for.

    Attributes:
        num_clients: n.
        rows_of: Per class, the rows of the training split that clients may draw.
        concentration: float (C,), of the Dirichlet distribution of label laws; 0 for classes that
            the data has no sample of.
        samples_per_client: Mean of the clients' sizes.
        size_sigma: Standard deviation of their logarithms.
        min_samples: Smallest client.
        seed: Of all clients.
        held: Share of a client's samples that it holds out.
        holds_out: Whether these are the rows held out, or those trained on.
    """

    num_clients: int
    rows_of: tuple[np.ndarray, ...]
    concentration: np.ndarray
    samples_per_client: float
    size_sigma: float
    min_samples: int
    seed: int
    held: float = 0.0
    holds_out: bool = False

    def __len__(self) -> int:
        return self.num_clients

    @overload
    def __getitem__(self, client: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, client: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        """Rows of one client, sorted; the same whenever and wherever they are drawn."""
        if isinstance(client, slice):
            return [self[k] for k in range(*client.indices(self.num_clients))]
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} of {self.num_clients}")
        rng = numpy_rng(self.seed, "client", client)
        size = self._size(rng)
        logs = log_dirichlet(rng, self.concentration, 1)[0]
        if self.held:  # two sets of rows, each with its own stream
            rng = numpy_rng(self.seed, "held" if self.holds_out else "fit", client)
        parts = [
            rows[rng.choice(len(rows), size=int(count), replace=False, shuffle=False)]
            for rows, count in zip(self.rows_of, self._counts(rng, size, logs), strict=True)
            if count
        ]
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)

    @property
    def num_samples(self) -> float:
        """Samples of all clients together, as expected."""
        share = self.held if self.holds_out else 1 - self.held
        return self.num_clients * self.samples_per_client * share

    @property
    def rows(self) -> np.ndarray:
        """All rows that clients may draw, sorted."""
        return np.sort(np.concatenate(self.rows_of))

    def hold_out(self, fraction: float) -> tuple[Population, Population]:
        """The same clients with a share of their samples held out.

        No client may train on a row that another one holds out, so the rows are divided first: that
        share of every class is for holding out. Clients draw from both parts by the same law.

        Args:
            fraction: In [0, 1).

        Returns:
            The rows that clients train on, and the rows that they hold out.
        """
        if fraction == 0:
            none = tuple(rows[:0] for rows in self.rows_of)
            return self, replace(self, held=1.0, holds_out=True, rows_of=none)
        labels = np.repeat(np.arange(len(self.rows_of)), [len(rows) for rows in self.rows_of])
        rows = np.concatenate(self.rows_of)
        out = carve(labels, fraction, derive(self.seed, "holdout"))
        classes = range(len(self.rows_of))
        fit = tuple(rows[~out & (labels == c)] for c in classes)
        held = tuple(rows[out & (labels == c)] for c in classes)
        return (
            replace(self, rows_of=fit, held=fraction),
            replace(self, rows_of=held, held=fraction, holds_out=True),
        )

    def _size(self, rng: np.random.Generator) -> int:
        """Samples of a client: log-normal with the configured mean, at least the minimum."""
        sigma = self.size_sigma
        drawn = self.samples_per_client * np.exp(sigma * rng.standard_normal() - sigma**2 / 2)
        size = max(self.min_samples, int(np.floor(drawn + 0.5)))
        out = 0
        if size >= _SMALLEST_HOLDING_OUT:
            out = min(int(np.floor(self.held * size + 0.5)), size - 1)
        wanted = out if self.holds_out else size - out
        return min(wanted, sum(map(len, self.rows_of)))

    def _counts(self, rng: np.random.Generator, size: int, logs: np.ndarray) -> np.ndarray:
        """Samples per class; a class that has run out is struck from the client's law."""
        left = np.array([len(rows) for rows in self.rows_of])
        counts = np.zeros_like(left)
        while missing := size - int(counts.sum()):  # every pass fills the client or empties a class
            law = softmax(np.where(left > 0, logs, -np.inf))
            drawn = np.minimum(rng.multinomial(missing, law), left)
            counts += drawn
            left -= drawn
        return counts
