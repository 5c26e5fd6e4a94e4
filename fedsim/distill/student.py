"""Students: what learns from a synthetic set, and how far it ends from the client it imitates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from fedsim.distill.dual_keys import CacheModel, KeyStudent
from fedsim.distill.matching import match_gradient
from fedsim.distill.trajectory import (
    DISTANCES,
    Lesson,
    Match,
    NetworkFunction,
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


def student_of(
    network: NetworkFunction,
    loss: Literal["trajectory", "gradient"] = "trajectory",
    gradient: Literal["constant", "unroll"] = "constant",
    distance: Literal["squared", "layerwise"] = "squared",
) -> Student:
    """The student that learns with these settings of `distill`; keys of a cache have their own."""
    if loss == "gradient":
        return GradientStudent(network)
    if isinstance(network, CacheModel):
        return KeyStudent(network, gradient)
    return NetworkStudent(network, gradient, distance)


@dataclass(frozen=True)
class NetworkStudent:
    """Trains a network for S steps."""

    network: NetworkFunction
    gradient: Literal["constant", "unroll"] = "constant"
    metric: Literal["squared", "layerwise"] = "squared"

    def match(self, lesson: Lesson) -> Match:
        """See `Student`."""
        return match_trajectory(self.network, lesson, self.gradient, DISTANCES[self.metric])

    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """See `Student`."""
        last = train_student(self.network, lesson)[-1]
        loss = DISTANCES[self.metric](last, lesson.start, lesson.end)
        return loss, squared_distance(last, lesson.end, lesson.start).sqrt()


@dataclass(frozen=True)
class GradientStudent:
    """Compares the direction of its first step; has no step size."""

    network: NetworkFunction

    def match(self, lesson: Lesson) -> Match:
        """See `Student`."""
        return match_gradient(self.network, lesson)

    def distance(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """See `Student`; a direction has no length."""
        loss = self.match(lesson).loss
        return loss, loss.new_ones(loss.shape)
