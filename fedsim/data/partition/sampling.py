"""What a partition scheme is given and gives back, and the random draws that schemes share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.errors import ConfigError

__all__ = ["Ask", "Draft", "log_dirichlet", "softmax", "split_counts"]


@dataclass(frozen=True)
class Ask:
    """What to split and how. Values were checked by `make_partition`, except for presence."""

    labels: np.ndarray
    num_classes: int
    num_clients: int
    rng: np.random.Generator
    min_samples: int
    dirichlet_alpha: float | None
    classes_per_client: int | None
    samples_per_client: int | None
    size_sigma: float | None
    imbalance_factor: float | None
    clients: np.ndarray | None
    domains: np.ndarray | None

    def need(self, name: str, scheme: str) -> float:
        """The value of an option that this scheme cannot do without."""
        value = getattr(self, name)
        if value is None:
            raise ConfigError(f"partition {scheme!r} needs {name}: set it")
        return float(value)


@dataclass(frozen=True)
class Draft:
    """A scheme's answer before the minimum size is met.

    Attributes:
        owner: int64 (N,).
        log: What the scheme wants known.
        cells: int (N,), what `allowed` speaks about; None = the labels.
        allowed: bool (n, num_cells), what a client should hold; None = anything.
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
