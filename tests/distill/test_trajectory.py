from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.config.classifier import ClassifierConfig
from fedsim.distill.augment import OPERATIONS
from fedsim.distill.student import Lesson, Step, student_loss
from fedsim.distill.trajectory import NetworkStudent, layerwise_distance, squared_distance
from fedsim.models.classifiers import Classifier
from fedsim.params import Params
from tests.distill.nets import NUM_CLASSES, SIDE, network, problem, steps, weights


def through_all_steps(
    start: Params, end: Params, images: Tensor, labels: Tensor, lr: Tensor, steps: list[Step]
) -> Tensor:
    """The distances, with torch's own graph through every step."""
    params = {k: v.clone().requires_grad_() for k, v in start.items()}
    for step in steps:
        loss = student_loss(network, params, images, labels, step).sum()
        found = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {
            k: v - lr.view(-1, *[1] * (v.dim() - 1)) * g
            for (k, v), g in zip(params.items(), found, strict=True)
        }
    return squared_distance(params, start, end)


@pytest.mark.parametrize("operations", [(), OPERATIONS])
def test_unroll_is_autograd_through_all_steps(operations: tuple[str, ...]):
    given: dict[str, Any] = problem()
    images, lr = given["images"].requires_grad_(), given["lr"].requires_grad_()
    schedule = steps(4, operations=operations)
    loss = through_all_steps(**given, steps=schedule)
    by_images, by_lr = torch.autograd.grad(loss.sum(), [images, lr])
    found = NetworkStudent(network, "unroll").match(Lesson(**_detached(given), steps=schedule))
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.images, by_images)
    torch.testing.assert_close(found.lr, by_lr)
    assert by_images.abs().sum() > 0


def test_unroll_is_the_slope_of_the_distance():
    given: dict[str, Any] = problem()
    schedule = steps(3)
    found = NetworkStudent(network, "unroll").match(Lesson(**given, steps=schedule))
    direction = torch.randn(
        given["images"].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    size = 1e-5

    def loss(sign: int, **changed: Tensor) -> Tensor:
        return NetworkStudent(network).match(Lesson(**{**given, **changed}, steps=schedule)).loss

    slope = (
        loss(1, images=given["images"] + size * direction)
        - loss(-1, images=given["images"] - size * direction)
    ) / (2 * size)
    along = (found.images * direction).flatten(1).sum(1)
    torch.testing.assert_close(along, slope, rtol=1e-6, atol=1e-8)
    slope = (loss(1, lr=given["lr"] + size) - loss(-1, lr=given["lr"] - size)) / (2 * size)
    torch.testing.assert_close(found.lr, slope, rtol=1e-6, atol=1e-8)


def test_constant_is_the_paper_s_formula():
    """`grad_x [alpha^2 <g_i, g_i> + 2 alpha <g_i, alpha sum_{j != i} g_j - th_0 + th*>] / norm`."""
    given: dict[str, Any] = problem(num_clients=1)
    schedule = steps(3, num_clients=1)
    found = NetworkStudent(network, "constant").match(Lesson(**given, steps=schedule))
    path = NetworkStudent(network).path(Lesson(**given, steps=schedule))
    images = given["images"].requires_grad_()
    alpha, flat = float(given["lr"]), [_flat(p) for p in path]
    moves = [(a - b) / alpha for a, b in pairwise(flat)]
    start, end = _flat(given["start"]), _flat(given["end"])
    total = torch.zeros_like(images)
    for i, step in enumerate(schedule):
        params = {k: v.clone().requires_grad_() for k, v in path[i].items()}
        loss = student_loss(network, params, images, given["labels"], step).sum()
        g = torch.cat(
            [
                v.flatten()
                for v in torch.autograd.grad(loss, list(params.values()), create_graph=True)
            ]
        )
        others = sum(move for j, move in enumerate(moves) if j != i)
        objective = alpha**2 * (g @ g) + 2 * alpha * (g @ (alpha * others - start + end))
        total += torch.autograd.grad(objective, images)[0]
    torch.testing.assert_close(found.images, total / (start - end).square().sum())


def test_where_constant_and_unroll_agree_and_how_they_differ():
    given: dict[str, Any] = problem()

    def relative_gap(count: int, lr: float) -> float:
        mine = {**given, "lr": torch.full_like(given["lr"], lr)}
        constant, unroll = (
            NetworkStudent(network, kind).match(Lesson(**mine, steps=steps(count))).images
            for kind in ("constant", "unroll")
        )
        return float((constant - unroll).norm() / unroll.norm())

    assert relative_gap(1, 0.5) == 0  # one step has no later step to act through
    small, large = relative_gap(4, 1e-4), relative_gap(4, 1e-2)
    assert 0 < small < 1e-3
    assert large / small == pytest.approx(100, rel=0.1)  # the gap is linear in the step size
    assert relative_gap(8, 1e-3) > relative_gap(4, 1e-3)


@pytest.mark.parametrize("gradient", ["constant", "unroll"])
def test_clients_together_are_clients_alone(gradient: Any):
    given: dict[str, Any] = problem(num_clients=3)
    schedule = steps(3, num_clients=3, operations=("crop", "rotate"))
    together = NetworkStudent(network, gradient).match(Lesson(**given, steps=schedule))
    for c in range(3):
        own: dict[str, Any] = {
            k: {n: t[c : c + 1] for n, t in v.items()} if isinstance(v, dict) else v[c : c + 1]
            for k, v in given.items()
        }
        path = [Step(s.rows[c : c + 1], s.mask[c : c + 1], s.draws[c : c + 1]) for s in schedule]
        alone = NetworkStudent(network, gradient).match(Lesson(**own, steps=path))
        torch.testing.assert_close(alone.loss[0], together.loss[c])
        torch.testing.assert_close(alone.images[0], together.images[c])
        torch.testing.assert_close(alone.lr[0], together.lr[c])


def test_padding_changes_nothing():
    given: dict[str, Any] = problem()
    schedule = steps(2)
    found = NetworkStudent(network, "unroll").match(Lesson(**given, steps=schedule))
    last = [int(s.rows[1, -1]) for s in schedule]
    moved = [Step(s.rows.clone(), s.mask, s.draws) for s in schedule]
    for step in moved:
        step.rows[1, -1] = (step.rows[1, -1] + 1) % 4
    assert last != [int(s.rows[1, -1]) for s in moved]
    again = NetworkStudent(network, "unroll").match(Lesson(**given, steps=moved))
    assert torch.equal(found.images, again.images)


def test_distances():
    start, end = weights(1), weights(1, seed=1)
    for distance in (squared_distance, layerwise_distance):
        assert float(distance(start, start, end)) == pytest.approx(1)
        assert float(distance(end, start, end)) == 0
    halfway = {k: (start[k] + end[k]) / 2 for k in end}
    assert float(squared_distance(halfway, start, end)) == pytest.approx(0.25)
    # Only the last bias has moved: the label frequencies of a client explain that.
    bias_only = start | {"head.bias": end["head.bias"]}
    assert float(layerwise_distance(bias_only, start, end)) == pytest.approx(1)
    assert float(squared_distance(bias_only, start, end)) < 1


def test_a_client_that_did_not_move_has_a_finite_distance():
    start = weights(1)
    assert torch.isfinite(squared_distance(weights(1, seed=1), start, start)).all()


def _detached(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in given.items()}


def _flat(params: Params) -> Tensor:
    return torch.cat([v.flatten() for v in params.values()])


@pytest.mark.parametrize("gradient", ["constant", "unroll"])
@pytest.mark.parametrize("num_clients", [1, 2])
def test_a_classifier_s_clients_in_channels_are_its_clients_under_vmap(
    gradient: Any, num_clients: int
):
    """Through the second derivatives too: the plain function takes vmap's way."""
    net = Classifier(ClassifierConfig(depth=2, width=8), (1, SIDE, SIDE), NUM_CLASSES)
    rng = torch.Generator().manual_seed(2)
    starts = [net.init(rng) for _ in range(num_clients)]
    start = {k: torch.stack([w[k] for w in starts]).double() for k in net.names}
    given: dict[str, Any] = problem(num_clients) | {
        "start": start,
        "end": {k: v + 0.1 * torch.randn(v.shape, generator=rng) for k, v in start.items()},
    }
    schedule = steps(3, num_clients)
    found, plain = (
        NetworkStudent(one, gradient).match(Lesson(**given, steps=schedule))
        for one in (net, lambda params, x: net(params, x))
    )
    torch.testing.assert_close(found.loss, plain.loss)
    torch.testing.assert_close(found.images, plain.images)
    torch.testing.assert_close(found.lr, plain.lr)
    assert plain.images.abs().sum() > 0
