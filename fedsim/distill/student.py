"""Students: what learns from a synthetic set, and how far it ends from the client it imitates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedsim.distill.keys import CacheModel, KeyStudent
from fedsim.distill.matching import match_gradient
from fedsim.distill.trajectory import (
    DISTANCES,
    Match,
    Network,
    Step,
    match_trajectory,
    squared_distance,
    train_student,
)
from fedsim.distillation import DistillConfig
from fedsim.params import Params


class Student(Protocol):
    """Learns from sets, one per client.

    Arguments of both functions: `start` and `end` of the clients' training, `(C, ...)` by name;
    `images` `(C, n, ...)` and `labels` `(C, n)`; step sizes `lr` `(C,)`; what is seen in each step.
    """

    def match(
        self,
        start: Params,
        end: Params,
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
        steps: Sequence[Step],
    ) -> Match:
        """Distances, and their gradients by images and step sizes."""

    def distance(
        self,
        start: Params,
        end: Params,
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
        steps: Sequence[Step],
    ) -> tuple[Tensor, Tensor]:
        """Distances `(C,)`, and how far students move, in their clients' moves `(C,)`."""


def student_of(network: Network, settings: DistillConfig) -> Student:
    """The student that learns with these settings; keys of a cache have one of their own."""
    if settings.loss == "gradient":
        return GradientStudent(network)
    if isinstance(network, CacheModel):
        return KeyStudent(network, settings.gradient)
    return NetworkStudent(network, settings)


@dataclass(frozen=True)
class NetworkStudent:
    """Trains a network for S steps."""

    network: Network
    settings: DistillConfig

    def match(
        self,
        start: Params,
        end: Params,
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
        steps: Sequence[Step],
    ) -> Match:
        """See `Student`."""
        gradient, distance = self.settings.gradient, DISTANCES[self.settings.distance]
        return match_trajectory(
            self.network, start, end, images, labels, lr, steps, gradient, distance
        )

    def distance(
        self,
        start: Params,
        end: Params,
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
        steps: Sequence[Step],
    ) -> tuple[Tensor, Tensor]:
        """See `Student`."""
        found = train_student(self.network, start, images, labels, lr, steps)[-1]
        loss = DISTANCES[self.settings.distance](found, start, end)
        return loss, squared_distance(found, end, start).sqrt()


@dataclass(frozen=True)
class GradientStudent:
    """Compares the direction of its first step; has no step size."""

    network: Network

    def match(
        self,
        start: Params,
        end: Params,
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
        steps: Sequence[Step],
    ) -> Match:
        """See `Student`."""
        return match_gradient(self.network, start, end, images, labels, steps[0])

    def distance(
        self,
        start: Params,
        end: Params,
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
        steps: Sequence[Step],
    ) -> tuple[Tensor, Tensor]:
        """See `Student`; a direction has no length."""
        loss = self.match(start, end, images, labels, lr, steps).loss
        return loss, loss.new_ones(loss.shape)
