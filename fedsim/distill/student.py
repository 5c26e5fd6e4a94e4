"""Students: a student learns from a client's synthetic set and imitates the client's training.

Everything has a leading axis C of clients, each with its own start, end, images and step size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from fedsim.distill.augment import AugmentDraw, augment
from fedsim.models.classifiers import Classifier
from fedsim.params import Params, unstack

NetworkFunction = Callable[[Params, Tensor], Tensor]
"""One network's params and images `(B, c, h, w)` in [-1, 1] -> logits `(B, num_classes)`."""


@dataclass(frozen=True)
class Step:
    """The batches of all clients' students in one step."""

    rows: Tensor
    """`(C, B)` int64 rows of each client's images."""
    mask: Tensor
    """`(C, B)` bool: False where a row is padding."""
    draws: tuple[AugmentDraw | None, ...]
    """The augmentation of each client's images."""


@dataclass(frozen=True)
class Lesson:
    """The images that all clients' students learn from, and the training that they imitate.

    Attributes:
        start: The weights that the clients received, `(C, ...)` by name.
        end: The weights that they sent, `(C, ...)` by name.
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
    """Distances and their gradients.

    Attributes:
        loss: `(C,)`.
        images: Gradient by the images, `(C, n, c, h, w)`.
        lr: Gradient by the step sizes, `(C,)`.
    """

    loss: Tensor
    images: Tensor
    lr: Tensor


class Student(Protocol):
    """Learns from sets, one per client."""

    def match(self, lesson: Lesson) -> Match:
        """Distances, and their gradients by images and step sizes."""

    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Distances, and the students' moves in units of their clients' moves, `(C,)` each."""


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
