"""The input and the output of partition schemes, and the draws that schemes share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from fedsim.config.base import Section


@dataclass(frozen=True)
class Ask:
    """The input of every scheme, checked by `fedsim.data.partition.make`."""

    labels: np.ndarray
    num_classes: int
    num_clients: int
    rng: np.random.Generator
    min_samples: int
    clients: np.ndarray | None
    domains: np.ndarray | None

    @property
    def class_sizes(self) -> np.ndarray:
        """Samples of each class, int64 (num_classes,)."""
        return np.bincount(self.labels, minlength=self.num_classes)


class DirichletOptions(Section):
    """The option of schemes that draw from a Dirichlet distribution."""

    dirichlet_alpha: float = Field(gt=0)
    """Concentration of every Dirichlet draw; small is heterogeneous."""


@dataclass(frozen=True)
class Draft:
    """A scheme's answer before the minimum size is met.

    Attributes:
        owner: int64 (N,).
        log: Lines for the partition's log.
        cells: int (N,), the cell of each sample in `allowed`; None = the labels.
        allowed: bool (n, num_cells), the cells that a client should hold; None = any.
    """

    owner: np.ndarray
    log: tuple[str, ...] = ()
    cells: np.ndarray | None = None
    allowed: np.ndarray | None = None


def log_dirichlet(rng: np.random.Generator, alpha: np.ndarray, count: int) -> np.ndarray:
    """Draws from Dir(alpha) as logarithms up to a constant, exact for any alpha > 0.

    Plain Gamma draws underflow to 0/0 for small alpha. Here log G(a) = log G(a + 1) + log(U) / a
    (Marsaglia and Tsang 2000), which never does, and a sub-vector can be renormalised after any
    number of its entries have been struck out.

    Args:
        rng: The stream to draw from.
        alpha: float (dim,), concentrations, above 0.
        count: Number of draws.

    Returns:
        float64 (count, dim); the softmax over the last axis is the draw.

    >>> log_dirichlet(np.random.default_rng(0), np.full(3, 1e-300), 2).shape
    (2, 3)
    """
    alpha = np.clip(alpha, 1e-300, 1e12)
    shape = (count, len(alpha))
    uniform = 1.0 - rng.random(shape)
    logs: np.ndarray = np.log(rng.standard_gamma(alpha + 1.0, shape)) + np.log(uniform) / alpha
    return logs


def softmax(logs: np.ndarray) -> np.ndarray:
    """Exponentials that sum to one over the last axis; -inf becomes 0."""
    weights: np.ndarray = np.exp(logs - logs.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def split_counts(rng: np.random.Generator, count: int, shares: np.ndarray) -> np.ndarray:
    """Integer parts of `count`, within one of `count * shares` and equal to it on average.

    Systematic sampling with a random start over the shares in random order.
    """
    order = rng.permutation(len(shares))
    sums = np.cumsum(shares[order])
    edges = np.floor(sums / sums[-1] * count + rng.random()).astype(np.int64)
    edges[-1] = count
    parts = np.empty(len(shares), dtype=np.int64)
    parts[order] = np.diff(np.minimum(edges, count), prepend=0)
    return parts


def hand_out(
    ask: Ask, counts: np.ndarray, log: tuple[str, ...] = (), allowed: np.ndarray | None = None
) -> Draft:
    """Random samples of each class, as many as `counts` (n, C) says; the rest is unused."""
    owner = np.full(len(ask.labels), -1, dtype=np.int64)
    clients = np.arange(len(counts))
    for label in range(ask.num_classes):
        rows = ask.rng.permutation(np.flatnonzero(ask.labels == label))
        to = np.repeat(clients, counts[:, label])
        owner[rows[: len(to)]] = to
    return Draft(owner, log, allowed=allowed)


def label_counts(ask: Ask, alpha: float, keep: np.ndarray | None = None) -> np.ndarray:
    """`(n, C)` counts: class sizes (or `keep`) times one Dir(alpha) draw per class."""
    sizes = ask.class_sizes if keep is None else keep
    laws = softmax(log_dirichlet(ask.rng, np.full(ask.num_clients, alpha), ask.num_classes))
    return np.stack(
        [split_counts(ask.rng, int(s), law) for s, law in zip(sizes, laws, strict=True)], axis=1
    )
