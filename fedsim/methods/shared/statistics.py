"""Sums over clients' samples, and closed forms of them. Both are exact under any partition.

Sums are float64, on the wire as well. Gram matrices are ill-conditioned. Rounded to float32, they
would make the result depend on the split again where the ridge is small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.methods.base import Batches, Received, Task, Update
from fedsim.models.cache import text_logits
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
        `second` `(C, M (M + 1) / 2)`, the upper triangle of the sum of x x^T, and `cross`
        `(C, M, N)`, the sum of x t^T. A ghost's are 0.
    """
    second = cross = torch.zeros((), dtype=torch.float64, device=batches.device)
    for batch in batches.all_samples():
        inputs = batch.x.double()
        x = regressors(inputs) * batch.mask[..., None]
        second = second + x.mT @ x
        cross = cross + x.mT @ targets(inputs, batch.y)
    return {"second": triangle(second), "cross": cross}


def class_targets(task: Task, text: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The targets of a regression on classes, for `normal_equations`.

    Args:
        task: The task.
        text: Class embeddings `(N, d)`. The targets are one-hot labels minus the probabilities that
            the text classifier gives, or the labels alone without it.
    """

    def targets(f: Tensor, y: Tensor) -> Tensor:
        labels = one_hot(y, task.num_classes)
        if text is None:
            return labels
        return labels - text_logits(f, text.double(), task.logit_scale).softmax(-1)

    return targets


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """`(...)` int64 -> `(..., num_classes)` float64."""
    return F.one_hot(labels, num_classes).double()


def plain_sums(sums: Params, batches: Batches) -> Update:
    """An update in which every client counts once, whatever its size, and a ghost not at all."""
    return Update(sums, weight=(batches.num_samples > 0).double())


def totals(received: Received) -> Params:
    """The sums over all clients, from the mean over their `plain_sums`."""
    return {name: mean * received.num_clients for name, mean in received.mean.items()}


def triangle(matrix: Tensor) -> Tensor:
    """The upper triangle of symmetric matrices `(..., M, M)`, as `(..., M (M + 1) / 2)`."""
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


def regressed(sums: Params, strength: float) -> Tensor:
    """The ridge solution `(M, N)` from the totals of `normal_equations`."""
    return ridge(square(sums["second"], len(sums["cross"])), sums["cross"], strength)


def ridge(second: Tensor, targets: Tensor, strength: float) -> Tensor:
    """`argmin_W  E |x W - t|^2 + l |W|^2` with `l = strength * tr(E x x^T) / M`.

    The strength is relative to the mean eigenvalue, so it means the same for any number and scale
    of features, and for sums as for means.

    Args:
        second: `(M, M)`, E x x^T.
        targets: `(M, N)`, E x t^T.
        strength: Above 0.

    Returns:
        `(M, N)` float64; 0 if all features are 0.
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
        fallback: `(N, d)` directions of the classes without a sample. They get the mean length of
            the other classes' means.

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
    """`S + shrinkage * tr(S) / d * I`, which is invertible and scales like the data."""
    size = len(covariance)
    eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    return covariance + shrinkage * covariance.trace() / size * eye


def discriminant(means: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussian discriminants with equal priors: weights `(N, d)` and biases `(N,)`.

    `f w_c + b_c = f S^-1 mu_c - mu_c S^-1 mu_c / 2`, the log-likelihood up to a constant.
    """
    weights = torch.linalg.solve(covariance, means.mT).mT
    return weights, -(weights * means).sum(1) / 2
