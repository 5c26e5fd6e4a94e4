from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsim.distill.matching import (
    GradientStudent,
    class_means,
    distribution_distance,
    gradient_distance,
)
from fedsim.distill.student import Lesson
from fedsim.distill.trajectory import NetworkStudent
from tests.distill.nets import network, problem, steps, weights


def test_gradient_distance_is_scale_free_and_counts_rows():
    g = weights(2)
    zero = gradient_distance({k: 3 * v for k, v in g.items()}, g)
    torch.testing.assert_close(zero, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    rows = 2 + 1 + 3 + 1  # rows of two weights, and two biases
    torch.testing.assert_close(
        gradient_distance({k: -v for k, v in g.items()}, g), torch.full_like(zero, 2.0 * rows)
    )


def test_its_gradient_is_a_slope():
    given: dict[str, Any] = problem()
    lesson = Lesson(**given, steps=steps(1))
    student = GradientStudent(network)
    found = student.match(lesson)
    direction = torch.randn(
        given["images"].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    ahead, behind = (
        GradientStudent(network)
        .match(replace(lesson, images=lesson.images + size * direction))
        .loss
        for size in (1e-5, -1e-5)
    )
    along = (found.images * direction).flatten(1).sum(1)
    torch.testing.assert_close(along, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-7)


def test_the_client_s_own_images_match_its_move():
    given: dict[str, Any] = problem()
    lesson = Lesson(**given, steps=steps(1))
    end = NetworkStudent(network).path(lesson)[-1]
    loss = GradientStudent(network).match(replace(lesson, end=end)).loss
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-9, rtol=0)


def test_distributions():
    labels = torch.tensor([0, 0, 1])
    real = class_means(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), labels, 3)
    assert real.tolist() == [[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]]
    synthetic = real + torch.tensor([1.0, 2.0])
    present = torch.tensor([True, True, False])
    assert float(distribution_distance(real, synthetic, present)) == pytest.approx(10)
