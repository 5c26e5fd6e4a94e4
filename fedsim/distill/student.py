"""Students: what learns from a synthetic set, and how far it ends from the client it imitates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedsim.config.distill import DistillConfig
from fedsim.distill.dual_keys import CacheModel, KeyStudent
from fedsim.distill.matching import match_gradient
from fedsim.distill.trajectory import (
    DISTANCES,
    Lesson,
    Match,
    Network,
    match_trajectory,
    squared_distance,
    train_student,
)


class Student(Protocol):
    """Learns from sets, one per client."""

    def match(self, lesson: Lesson) -> Match:
        """Distances, and their gradients by images and step sizes."""

    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
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

    def match(self, lesson: Lesson) -> Match:
        """See `Student`."""
        gradient, distance = self.settings.gradient, DISTANCES[self.settings.distance]
        one = lesson
        return match_trajectory(
            self.network,
            one.start,
            one.end,
            one.images,
            one.labels,
            one.lr,
            one.steps,
            gradient,
            distance,
        )

    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """See `Student`."""
        one = lesson
        path = train_student(self.network, one.start, one.images, one.labels, one.lr, one.steps)
        loss = DISTANCES[self.settings.distance](path[-1], one.start, one.end)
        return loss, squared_distance(path[-1], one.end, one.start).sqrt()


@dataclass(frozen=True)
class GradientStudent:
    """Compares the direction of its first step; has no step size."""

    network: Network

    def match(self, lesson: Lesson) -> Match:
        """See `Student`."""
        one = lesson
        return match_gradient(
            self.network, one.start, one.end, one.images, one.labels, one.steps[0]
        )

    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """See `Student`; a direction has no length."""
        loss = self.match(lesson).loss
        return loss, loss.new_ones(loss.shape)
