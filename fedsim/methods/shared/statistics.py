"""Sums over a client's samples, and what a server makes of them: exact under any partition.

They are float64, on the wire as well: Gram matrices are ill-conditioned, and under a small ridge,
rounding them to float32 would make the result depend on the split again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.methods.base import Batches, Received, Update
from fedsim.params import Params


def normal_equations(
    batches: Batches,
    regressors: Callable[[Tensor], Tensor],
    targets: Callable[[Tensor, Tensor], Tensor],
) -> Params:
    """Every client's two sums of a least-squares problem.

    Args:
        batches: The group's local data; each sample counts once.
        regressors: Inputs `(C, B, ...)` in float64 -> x, `(C, B, M)`.
        targets: The same inputs, and labels `(C, B)` -> t, `(C, B, N)`.

    Returns:
        `second` `(C, M (M + 1) / 2)`, upper triangle of the sum of x x^T; `cross` `(C, M, N)`, sum
        of x t^T. All 0 for a ghost.
    """
    second = cross = torch.zeros((), dtype=torch.float64, device=batches.device)
    for batch in batches.all_samples():
        inputs = batch.x.double()
        x = regressors(inputs) * batch.mask[..., None]
        second = second + x.mT @ x
        cross = cross + x.mT @ targets(inputs, batch.y)
    return {"second": triangle(second), "cross": cross}


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """`(...)` int64 -> `(..., num_classes)` float64."""
    return F.one_hot(labels, num_classes).double()


def plain_sums(sums: Params, batches: Batches) -> Update:
    """An update in which a client counts once, however many samples it has; a ghost does not."""
    return Update(sums, weight=(batches.num_samples > 0).double())


def totals(received: Received) -> Params:
    """The sums of all clients together, from the mean over `plain_sums`."""
    return {name: mean * received.num_clients for name, mean in received.mean.items()}


def triangle(matrix: Tensor) -> Tensor:
    """The upper triangle of symmetric matrices `(..., M, M)` as `(..., M (M + 1) / 2)`."""
    size = matrix.shape[-1]
    rows, columns = torch.triu_indices(size, size, device=matrix.device)
    return matrix[..., rows, columns]


def square(triangle: Tensor, size: int) -> Tensor:
    """The symmetric matrix `(size, size)` with the given upper triangle.

    >>> square(torch.tensor([1.0, 2.0, 3.0]), 2).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    rows, columns = torch.triu_indices(size, size, device=triangle.device)
    matrix = triangle.new_zeros(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix


def ridge(second: Tensor, targets: Tensor, strength: float) -> Tensor:
    """`argmin_W  E |x W - t|^2 + l |W|^2` with `l = strength * tr(E x x^T) / M`.

    Relative to the mean eigenvalue, one strength means the same for any number and scale of
    features; so sums do as well as means.

    Args:
        second: `(M, M)`, E x x^T.
        targets: `(M, N)`, E x t^T.
        strength: Above 0.

    Returns:
        `(M, N)` float64; 0 where all features are.
    """
    size = len(second)
    if second.trace() <= 0:
        return torch.zeros_like(targets, dtype=torch.float64)
    damping = strength * second.double().trace() / size
    eye = torch.eye(size, dtype=torch.float64, device=second.device)
    return torch.linalg.solve(second.double() + damping * eye, targets.double())


def class_gaussians(
    counts: Tensor, sums: Tensor, second: Tensor, fallback: Tensor
) -> tuple[Tensor, Tensor]:
    """Class means and the covariance that all classes share.

    Args:
        counts: `(N,)` samples per class.
        sums: `(N, d)` sum of every class's features.
        second: `(d, d)` sum of all features' outer products.
        fallback: `(N, d)` directions that stand in for classes without a sample, at the mean
            length of the others.

    Returns:
        Means `(N, d)` and covariance `(d, d)`, float64.
    """
    counts, sums = counts.double(), sums.double()
    means = sums / counts.clamp_min(1)[:, None]
    seen = counts > 0
    length = means[seen].norm(dim=1).mean() if seen.any() else torch.ones(())
    means = torch.where(seen[:, None], means, fallback.double() * length)
    scatter = second.double() - (means * counts[:, None]).mT @ means
    return means, scatter / counts.sum().clamp_min(1)


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """`S + shrinkage * tr(S) / d * I`: invertible, and still scaled like the data."""
    size = len(covariance)
    eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    return covariance + shrinkage * covariance.trace() / size * eye


def discriminant(means: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussian discriminants with equal priors: weights `(N, d)` and biases `(N,)`.

    `f w_c + b_c = f S^-1 mu_c - mu_c S^-1 mu_c / 2`, the log-likelihood up to a constant.
    """
    weights = torch.linalg.solve(covariance, means.mT).mT
    return weights, -(weights * means).sum(1) / 2
