"""Matching a client's training: synthetic images on which a student makes the client's move.

    start  theta_0     weights that the client received       end  theta*    weights that it sent
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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.distill.student import Lesson, Match, NetworkFunction, student_loss
from fedsim.params import Params, leaves, per_client

Distance = Callable[[Params, Params, Params], Tensor]
"""Student's end, start and client's end, `(C, ...)` by name -> `(C,)`."""

_TINY = 1e-12


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


@dataclass(frozen=True)
class NetworkStudent:
    """Trains a network for S steps.

    Attributes:
        network: The surrogate.
        gradient: See the top of this file.
        metric: One of `DISTANCES`.
    """

    network: NetworkFunction
    gradient: Literal["constant", "unroll"] = "constant"
    metric: Literal["squared", "layerwise"] = "squared"

    def path(self, lesson: Lesson) -> list[Params]:
        """The students after 0, 1, ..., S steps, without a graph."""
        path, images = [lesson.start], lesson.images.detach()
        for step in lesson.steps:
            params = leaves(path[-1])
            loss = student_loss(self.network, params, images, lesson.labels, step)
            gradients = torch.autograd.grad(loss.sum(), list(params.values()))
            path.append(_descend(path[-1], gradients, lesson.lr))
        return path

    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        last = self.path(lesson)[-1]
        loss = DISTANCES[self.metric](last, lesson.start, lesson.end)
        return loss, squared_distance(last, lesson.end, lesson.start).sqrt()

    def match(self, lesson: Lesson) -> Match:
        images, lr = lesson.images, lesson.lr
        path = self.path(lesson)
        last = leaves(path[-1])
        loss = DISTANCES[self.metric](last, lesson.start, lesson.end)
        adjoint = _gradients(loss.sum(), last)
        by_images, by_lr = torch.zeros_like(images), torch.zeros_like(lr)
        for step, before in zip(reversed(lesson.steps), reversed(path[:-1]), strict=True):
            params, x = leaves(before), images.detach().requires_grad_()
            objective = student_loss(self.network, params, x, lesson.labels, step)
            names = list(params)
            found = torch.autograd.grad(objective.sum(), list(params.values()), create_graph=True)
            by_lr -= torch.stack(
                [_dots(g.detach(), adjoint[k]) for k, g in zip(names, found, strict=True)]
            ).sum(0)
            pulled = torch.autograd.grad(
                found,
                [x, *(params.values() if self.gradient == "unroll" else ())],
                [-per_client(lr, adjoint[k]) * adjoint[k] for k in names],
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
        k: (v - per_client(lr, v) * g).detach()
        for (k, v), g in zip(params.items(), gradients, strict=True)
    }


def _gradients(value: Tensor, params: Params) -> Params:
    """Gradients by name; 0 for tensors that the value does not depend on."""
    found = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    return {
        k: torch.zeros_like(v) if g is None else g
        for (k, v), g in zip(params.items(), found, strict=True)
    }


def _squares(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def _dots(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).flatten(1).sum(1)
