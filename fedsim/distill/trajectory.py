"""Matching a client's training: synthetic images on which a student makes the client's move.

    start  theta_0     what the client received      end  theta*    what it sent back
    lr     alpha       the student's step size       x, y           synthetic images, labels

    student    theta_{i+1} = theta_i - alpha g_i,   g_i = grad_theta CE(net(A_i(x_i); theta_i), y_i)
    distance   |theta_S - theta*|^2 / |theta_0 - theta*|^2         (Cazenavette et al., 2022, eq. 2)

Gradients by x and alpha go through the student's S steps backwards, with the adjoint
`a_i = d distance / d theta_i` (H: Hessian of the loss, J_i: d g_i / d x_i):

    d distance / d x_i = -alpha J_i^T a_{i+1}        d distance / d alpha = -sum_i <g_i, a_{i+1}>
    unroll      a_i = a_{i+1} - alpha H_i a_{i+1}    exact: the gradient through all steps
    constant    a_i = a_S                            H dropped, as GLaD and FedDGM do

Either way one step's graph is alive at a time and the S small students are kept, so memory does not
grow with steps times activations. `constant` saves the Hessian products. The two are equal for one
step and differ by a relative O(alpha S |H|) otherwise.

All functions have a leading axis C of clients, each with its own start, end, images and step size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from fedsim.distill.augment import AugmentDraw, augment
from fedsim.models.classifiers import Classifier
from fedsim.params import Params, unstack

NetworkFunction = Callable[[Params, Tensor], Tensor]
"""One network's params and images `(B, c, h, w)` in [-1, 1] -> logits `(B, num_classes)`."""

Distance = Callable[[Params, Params, Params], Tensor]
"""Student's end, start and client's end, `(C, ...)` by name -> `(C,)`."""

_TINY = 1e-12


@dataclass(frozen=True)
class Step:
    """What the students of all clients see in one step."""

    rows: Tensor
    """`(C, B)` int64 rows of each client's images."""
    mask: Tensor
    """`(C, B)` bool: False where a row is padding."""
    draws: tuple[AugmentDraw | None, ...]
    """Per client, how its images are augmented."""


@dataclass(frozen=True)
class Lesson:
    """What students of all clients learn from, and what they are to imitate.

    Attributes:
        start: What the clients received, `(C, ...)` by name.
        end: What they sent, `(C, ...)` by name.
        images: `(C, n, ...)`.
        labels: `(C, n)` int64.
        lr: `(C,)` step sizes of the students.
        steps: The batch of every step.
    """

    start: Params
    end: Params
    images: Tensor
    labels: Tensor
    lr: Tensor
    steps: Sequence[Step]


@dataclass(frozen=True)
class Match:
    """A distance and what changes it.

    Attributes:
        loss: `(C,)`.
        images: Gradient by the images, `(C, n, c, h, w)`.
        lr: Gradient by the step sizes, `(C,)`.
    """

    loss: Tensor
    images: Tensor
    lr: Tensor


def squared_distance(found: Params, start: Params, end: Params) -> Tensor:
    """`|found - end|^2 / |start - end|^2` over all tensors together, `(C,)`."""
    left = sum(_squares(found[k] - end[k]) for k in end)
    right = sum(_squares(start[k] - end[k]) for k in end)
    assert isinstance(left, Tensor)
    assert isinstance(right, Tensor)
    return left / right.clamp_min(_TINY)


def layerwise_distance(found: Params, start: Params, end: Params) -> Tensor:
    """The same of every tensor but the last bias, averaged: small layers count like large ones.

    The last bias is left out because label frequencies alone explain its move; "last" is the last
    tensor with one axis.
    """
    biases = [k for k, v in end.items() if v.dim() == 2]
    names = [k for k in end if not biases or k != biases[-1]]
    each = [squared_distance({k: found[k]}, {k: start[k]}, {k: end[k]}) for k in names]
    return torch.stack(each).mean(0)


DISTANCES: dict[str, Distance] = {"squared": squared_distance, "layerwise": layerwise_distance}


def student_loss(
    network: NetworkFunction, params: Params, images: Tensor, labels: Tensor, step: Step
) -> Tensor:
    """Cross-entropy of every client's student on its batch, `(C,)`.

    Args:
        network: The surrogate.
        params: `(C, ...)` by name.
        images: `(C, n, c, h, w)`.
        labels: `(C, n)`.
        step: Which rows, and how they are augmented.
    """
    clients = range(len(images))
    x = torch.stack([augment(images[c, step.rows[c]], step.draws[c]) for c in clients])
    y = labels.gather(1, step.rows)
    logits = over_clients(network, params, x)
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
    return (losses * step.mask).sum(1) / step.mask.sum(1).clamp_min(1)


def over_clients(network: NetworkFunction, params: Params, x: Tensor) -> Tensor:
    """Logits `(C, B, num_classes)` of C networks; a `Classifier` has a faster way than vmap."""
    if isinstance(network, Classifier):
        return network.on_clients(params, x)
    if len(x) == 1:  # alone it takes no batching rules
        return network(unstack(params, 0), x[0])[None]
    return vmap(network)(params, x)


def train_student(network: NetworkFunction, lesson: Lesson) -> list[Params]:
    """The students after 0, 1, ..., S steps, without a graph."""
    path, images = [lesson.start], lesson.images.detach()
    for step in lesson.steps:
        params = _leaves(path[-1])
        loss = student_loss(network, params, images, lesson.labels, step)
        gradients = torch.autograd.grad(loss.sum(), list(params.values()))
        path.append(_descend(path[-1], gradients, lesson.lr))
    return path


def match_trajectory(
    network: NetworkFunction,
    lesson: Lesson,
    gradient: Literal["constant", "unroll"] = "constant",
    distance: Distance = squared_distance,
) -> Match:
    """How far students trained on the images end from the clients, and the gradients of that.

    Args:
        network: The surrogate.
        lesson: What the students learn from.
        gradient: See the top of this file.
        distance: One of `DISTANCES`.
    """
    images, lr = lesson.images, lesson.lr
    path = train_student(network, lesson)
    last = _leaves(path[-1])
    loss = distance(last, lesson.start, lesson.end)
    adjoint = _gradients(loss.sum(), last)
    by_images, by_lr = torch.zeros_like(images), torch.zeros_like(lr)
    for step, before in zip(reversed(lesson.steps), reversed(path[:-1]), strict=True):
        params, x = _leaves(before), images.detach().requires_grad_()
        objective = student_loss(network, params, x, lesson.labels, step)
        names = list(params)
        found = torch.autograd.grad(objective.sum(), list(params.values()), create_graph=True)
        by_lr -= torch.stack(
            [_dots(g.detach(), adjoint[k]) for k, g in zip(names, found, strict=True)]
        ).sum(0)
        pulled = torch.autograd.grad(
            found,
            [x, *(params.values() if gradient == "unroll" else ())],
            [-_on(lr, adjoint[k]) * adjoint[k] for k in names],
            allow_unused=True,  # the Hessian of a linear model's bias, for example
        )
        if pulled[0] is not None:
            by_images += pulled[0]
        for name, change in zip(names, pulled[1:], strict=False):
            if change is not None:
                adjoint[name] = adjoint[name] + change
    return Match(loss.detach(), by_images, by_lr)


def _descend(params: Params, gradients: Sequence[Tensor], lr: Tensor) -> Params:
    return {
        k: (v - _on(lr, v) * g).detach()
        for (k, v), g in zip(params.items(), gradients, strict=True)
    }


def _gradients(value: Tensor, params: Params) -> Params:
    """Gradients by name; 0 for tensors that the value does not depend on."""
    found = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    return {
        k: torch.zeros_like(v) if g is None else g
        for (k, v), g in zip(params.items(), found, strict=True)
    }


def _leaves(params: Params) -> Params:
    return {k: v.detach().requires_grad_() for k, v in params.items()}


def _on(lr: Tensor, like: Tensor) -> Tensor:
    """`(C,)` as `(C, 1, ...)`."""
    return lr.view(-1, *[1] * (like.dim() - 1))


def _squares(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def _dots(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).flatten(1).sum(1)
