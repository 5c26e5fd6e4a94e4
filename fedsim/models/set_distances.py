"""How close one set of features lies to another: distances, coverage, copying.

Notation: X real features (n, d), Y synthetic features (m, d). Sums are in float64; all arithmetic
is torch's, whose threads a run fixes. A measure that needs more samples than there are is NaN.

    frechet_distance    ||mu_X - mu_Y||^2 + tr(S_X + S_Y - 2 (S_X S_Y)^(1/2))
                        Heusel et al., NeurIPS 2017
    kernel_distance     unbiased MMD^2 with k(x, y) = (gamma x.y + 1)^3
                        Binkowski et al., ICLR 2018
    precision, recall   share of Y inside the k-NN balls of X, and of X inside those of Y
                        Kynkaanniemi et al., NeurIPS 2019
    density, coverage   mean number of balls of X around a y, over k; share of balls with a y in
                        them                        Naeem et al., ICML 2020
    closeness           P(a y is nearer to the training set than a held-out x): the Mann-Whitney
                        statistic behind C_T        Meehan et al., AISTATS 2020
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_ROUNDING = 1e-12
"""Slack of squared distances, relative to squared lengths: a copy is as near as its original."""
_CHUNK = 4096


def frechet_distance(real: Tensor, synthetic: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets; FID when features are Inception's.

    Biased upwards for few samples, and meaningless when a covariance has not full rank, which
    takes more samples than dimensions: NaN unless both sets have more than d.

    Args:
        real: `(n, d)`.
        synthetic: `(m, d)`.

    >>> points = torch.tensor([[0.0], [2.0]])
    >>> frechet_distance(points, points + 3)
    9.0
    """
    dim = real.shape[1]
    if min(len(real), len(synthetic)) <= dim:
        return math.nan
    real, synthetic = real.double(), synthetic.double()
    first, second = (torch.cov(x.T).view(dim, dim) for x in (real, synthetic))
    # tr (S_X S_Y)^(1/2) by the symmetric S_X^(1/2) S_Y S_X^(1/2), which has the same eigenvalues.
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    gap = (real.mean(0) - synthetic.mean(0)).square().sum()
    return max(0.0, float(gap + first.trace() + second.trace() - 2 * cross))


def kernel_distance(
    real: Tensor,
    synthetic: Tensor,
    rng: np.random.Generator,
    gamma: float | None = None,
    num_subsets: int = 50,
    subset_size: int = 500,
) -> float:
    """Unbiased squared maximum mean discrepancy under a cubic kernel; KID on Inception's features.

    Expected to be 0 for sets of one law, whatever their sizes, and so at times below 0.

    Args:
        real: `(n, d)`.
        synthetic: `(m, d)`.
        rng: Draws subsets where a set is larger than one.
        gamma: Factor of the dot product; 1 / d by default.
        num_subsets: Number of draws in the mean. Sets that fit into one draw are taken whole, once.
        subset_size: Samples of each set in one draw, at most.

    Returns:
        The distance; NaN with fewer than 2 samples in a set.
    """
    if min(len(real), len(synthetic)) < 2:
        return math.nan
    real, synthetic = real.double(), synthetic.double()
    gamma = 1 / real.shape[1] if gamma is None else gamma
    if max(len(real), len(synthetic)) <= subset_size:
        return _mmd(real, synthetic, gamma)
    draws = [
        _mmd(_subset(real, subset_size, rng), _subset(synthetic, subset_size, rng), gamma)
        for _ in range(num_subsets)
    ]
    return math.fsum(draws) / len(draws)


def _subset(x: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    return x if len(x) <= size else x[torch.from_numpy(rng.choice(len(x), size, replace=False))]


def _mmd(x: Tensor, y: Tensor, gamma: float) -> float:
    def within(a: Tensor) -> Tensor:
        kernel = (gamma * a @ a.T + 1) ** 3
        return (kernel.sum() - kernel.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * ((gamma * x @ y.T + 1) ** 3).mean())


class Manifold(NamedTuple):
    """Shares in 0..1, and density, which may exceed 1; NaN with too few samples."""

    precision: float
    """Synthetic samples where real ones are: fidelity."""
    recall: float
    """Real samples where synthetic ones are: variety."""
    density: float
    """Precision that counts how many real neighbourhoods a sample lies in: robust to outliers."""
    coverage: float
    """Real neighbourhoods with a synthetic sample: variety, robust to outliers."""


def manifold_measures(
    real: Tensor, synthetic: Tensor, precision_k: int = 3, coverage_k: int = 5
) -> Manifold:
    """Precision, recall, density and coverage over balls to the k-th nearest neighbour.

    Args:
        real: `(n, d)`.
        synthetic: `(m, d)`.
        precision_k: Neighbours that span the balls of precision and recall.
        coverage_k: Neighbours that span the balls of density and coverage.

    >>> square = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]])
    >>> manifold_measures(square, square + 100)
    Manifold(precision=0.0, recall=0.0, density=0.0, coverage=0.0)
    """
    real, synthetic = real.double(), synthetic.double()
    between = _squared_distances(real, synthetic)
    precision = recall = density = coverage = math.nan
    most = max(precision_k, coverage_k)
    of_real, of_synthetic = _radii(real, most), _radii(synthetic, most)
    if len(real) > precision_k and len(synthetic):
        inside = between <= of_real[precision_k - 1][:, None]
        precision = float(inside.any(0).double().mean())
    if len(synthetic) > precision_k and len(real):
        inside = between <= of_synthetic[precision_k - 1]
        recall = float(inside.any(1).double().mean())
    if len(real) > coverage_k and len(synthetic):
        inside = between <= of_real[coverage_k - 1][:, None]
        density = float(inside.sum(0).double().mean()) / coverage_k
        coverage = float(inside.any(1).double().mean())
    return Manifold(precision, recall, density, coverage)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """`(len(a), len(b))`; rounding may leave them below 0."""
    return a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T


def _radii(x: Tensor, most: int) -> Tensor:
    """`(k, n)` squared distances to the nearest neighbours, k at most `most`, oneself left out."""
    if len(x) < 2:
        return x.new_empty(0, len(x))
    within = _squared_distances(x, x).fill_diagonal_(math.inf)
    near = within.topk(min(most, len(x) - 1), dim=1, largest=False).values
    return near.T + _ROUNDING * x.square().sum(1).amax()


def nearest_samples(samples: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of the others to each sample.

    Args:
        samples: `(m, d)`, of length 1.
        others: `(n, d)`, of length 1, n at least 1.

    Returns:
        Its cosine, `(m,)` float64, exact to the type of samples, and its row, `(m,)` int64: the
        first one of ties.
    """
    parts = [(samples @ part.T).max(1) for part in others.split(_CHUNK)]
    value, chunk = torch.stack([part.values for part in parts]).max(0)
    rows = torch.stack([part.indices for part in parts]).gather(0, chunk[None])[0]
    return value.double(), chunk * _CHUNK + rows


def closeness(synthetic: np.ndarray, held_out: np.ndarray) -> float:
    """Probability that a synthetic sample is nearer to the training set than a held-out real one.

    The Mann-Whitney statistic over all pairs, divided by their number: ties count a half.

    Args:
        synthetic: `(m,)` similarity of each synthetic sample to its nearest training sample.
        held_out: `(n,)` the same of real samples that are not in the training set.

    Returns:
        1/2 for samples as near as fresh real ones, 1 for copies, less for samples that lie apart
        from real data; NaN if either is empty.

    >>> closeness(np.array([0.9, 0.5]), np.array([0.5, 0.4]))
    0.875
    """
    if not len(synthetic) or not len(held_out):
        return math.nan
    order = np.sort(held_out)
    below = np.searchsorted(order, synthetic, side="left")
    up_to = np.searchsorted(order, synthetic, side="right")
    return float((below + up_to).sum() / (2 * len(synthetic) * len(held_out)))
