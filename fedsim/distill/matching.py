"""Matching gradients, or distributions of features, instead of the end of training.

gradient       sum over layers and output rows of 1 - cos(g_syn, g_real)
(Zhao et al., ICLR 2021, equations 5 and 7)
distribution   sum over classes of |mean psi(real) - mean psi(syn)|^2
(Zhao & Bilen, WACV 2023, equation 4; FedDM, arXiv 2207.09653)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.distill.student import Lesson, Match, NetworkFunction, student_loss
from fedsim.params import Params, leaves

_TINY = 1e-12


def gradient_distance(found: Params, wanted: Params) -> Tensor:
    """One minus the cosine, summed over output rows and tensors: `(C,)`.

    A weight has one row per output; a tensor with one axis is one row.

    Args:
        found: `(C, ...)` by name.
        wanted: `(C, ...)` by name; its length plays no part.
    """
    each = []
    for name, target in wanted.items():
        rows = (found[name], target)
        left, right = (v.flatten(2) if v.dim() > 2 else v[:, None] for v in rows)
        scale = (left.square().sum(2) * right.square().sum(2)).clamp_min(_TINY**2).sqrt()
        each.append((1 - (left * right).sum(2) / scale).sum(1))
    return torch.stack(each).sum(0)


def gradient_rows(params: Params) -> int:
    """Number of rows that `gradient_distance` adds up, of tensors without a client axis."""
    return sum(len(v) if v.dim() > 1 else 1 for v in params.values())


@dataclass(frozen=True)
class GradientStudent:
    """Compares the direction of its first step with the client's move; it has no step size.

    The client's move `start - end` stands in for its gradient, as in inversion attacks on federated
    updates. A direction has no length.
    """

    network: NetworkFunction

    def match(self, lesson: Lesson) -> Match:
        start, end = lesson.start, lesson.end
        params = leaves(start)
        x = lesson.images.detach().requires_grad_()
        loss = student_loss(self.network, params, x, lesson.labels, lesson.steps[0])
        names = list(params)
        found = torch.autograd.grad(loss.sum(), [params[k] for k in names], create_graph=True)
        wanted = {k: start[k] - end[k] for k in names}
        distance = gradient_distance(dict(zip(names, found, strict=True)), wanted)
        (by_images,) = torch.autograd.grad(distance.sum(), x)
        return Match(distance.detach(), by_images, torch.zeros_like(distance))

    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        loss = self.match(lesson).loss
        return loss, torch.ones_like(loss)


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean feature of every class, `(num_classes, d)`; 0 for a class without samples.

    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2]), 3).tolist()
    [[2.0], [0.0], [5.0]]
    """
    one_hot = F.one_hot(labels, num_classes).to(features.dtype)
    return (one_hot.T @ features) / one_hot.sum(0).clamp_min(1)[:, None]


def distribution_distance(real: Tensor, synthetic: Tensor, present: Tensor) -> Tensor:
    """Squared distance of class means, summed over the classes that are present: a number.

    Args:
        real: `(num_classes, d)`.
        synthetic: `(num_classes, d)`.
        present: `(num_classes,)` bool.
    """
    return ((real - synthetic).square().sum(1) * present).sum()
