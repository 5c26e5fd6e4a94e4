"""The dual form of matching moves of keys against the form that writes the keys down."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from fedsim.config.distill import DistillConfig
from fedsim.distill.client_sets import student_of
from fedsim.distill.dual_keys import CacheModel, KeyStudent
from fedsim.distill.matching import GradientStudent
from fedsim.distill.student import Lesson, Step
from fedsim.distill.trajectory import NetworkStudent
from fedsim.params import Params
from tests.helpers import unit

CLIENTS, IMAGES, KEYS, CLASSES, DIM = 3, 5, 8, 4, 6


def model() -> CacheModel:
    values = F.one_hot(torch.arange(KEYS) % CLASSES, CLASSES).float()
    return CacheModel(unit(CLASSES, DIM, seed=1), values, 2.0, 3.0, 5.0)


def clients() -> tuple[Params, Params, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    start = {"keys": unit(CLIENTS * KEYS, DIM, seed=2).view(CLIENTS, KEYS, DIM)}
    move = 0.1 * torch.randn(CLIENTS, KEYS, DIM, generator=rng)
    x = unit(CLIENTS * IMAGES, DIM, seed=3).view(CLIENTS, IMAGES, DIM)
    y = torch.randint(CLASSES, (CLIENTS, IMAGES), generator=rng)
    lr = torch.tensor([0.05, 0.2, 0.4])
    return start, {"keys": start["keys"] + move}, x, y, lr


def steps(count: int = 3) -> list[Step]:
    """Batches of 4 of 5 images, the last client's padded."""
    rng = torch.Generator().manual_seed(1)
    mask = torch.ones(CLIENTS, 4, dtype=torch.bool)
    mask[2, 2:] = False
    found = []
    for _ in range(count):
        rows = torch.stack([torch.randperm(IMAGES, generator=rng)[:4] for _ in range(CLIENTS)])
        rows[2, 2:] = 0
        found.append(Step(rows, mask, (None,) * CLIENTS))
    return found


@pytest.mark.parametrize("gradient", ["constant", "unroll"])
def test_matching_is_that_of_the_keys_themselves(gradient: Literal["constant", "unroll"]):
    start, end, x, y, lr = clients()
    direct = NetworkStudent(model(), gradient).match(Lesson(start, end, x, y, lr, steps()))
    dual = KeyStudent(model(), gradient).match(Lesson(start, end, x, y, lr, steps()))
    torch.testing.assert_close(dual.loss, direct.loss)
    assert direct.images.abs().amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(dual.images, direct.images, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dual.lr, direct.lr, rtol=1e-4, atol=1e-6)


def test_distances_and_lengths_are_those_of_the_keys_themselves():
    start, end, x, y, lr = clients()
    lesson = Lesson(start, end, x, y, lr, steps(5))
    direct = NetworkStudent(model()).distance(lesson)
    dual = KeyStudent(model(), "unroll").distance(lesson)
    for found, wanted in zip(dual, direct, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_client_that_did_not_move_is_no_division_by_zero():
    start, _, x, y, lr = clients()
    match = KeyStudent(model(), "unroll").match(Lesson(start, start, x, y, lr, steps()))
    assert match.loss.isfinite().all()
    assert match.images.isfinite().all()


def test_the_student_follows_from_what_is_matched():
    assert isinstance(student_of(model(), DistillConfig()), KeyStudent)
    assert isinstance(student_of(model(), DistillConfig(loss="gradient")), GradientStudent)
    assert isinstance(student_of(lambda params, x: x, DistillConfig()), NetworkStudent)
