from __future__ import annotations

import pytest
import torch

from fedsim.distill.augment import OPERATIONS, AugmentDraw, augment, draw_augmentation


def images(n: int = 4, c: int = 3, side: int = 8) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(n, c, side, side, generator=rng, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_slopes(operation: str, channels: int):
    x = images(2, channels).requires_grad_()
    draw = draw_augmentation([operation], 2, torch.Generator().manual_seed(1))
    assert augment(x, draw).shape == x.shape
    assert torch.autograd.gradcheck(lambda x: augment(x, draw), [x])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_it_changes_images_and_each_in_its_own_way(operation: str):
    x = images(1).expand(16, -1, -1, -1)
    changed = augment(x, draw_augmentation([operation], 16, torch.Generator().manual_seed(2)))
    assert (changed != x).any()
    assert (changed != changed[:1]).any()
    alike = augment(x, draw_augmentation([operation], 16, torch.Generator().manual_seed(3), True))
    assert torch.equal(alike, alike[:1].expand_as(alike))


def test_a_siamese_draw_is_the_same_for_another_batch():
    draw = draw_augmentation(OPERATIONS, 4, torch.Generator().manual_seed(4), siamese=True)
    x = images(6)
    torch.testing.assert_close(augment(x, draw)[:2], augment(x[:2], draw))


def test_the_draw_depends_on_the_generator_alone():
    a, b = (draw_augmentation(OPERATIONS, 3, torch.Generator().manual_seed(9)) for _ in "ab")
    assert a is not None
    assert b is not None
    assert a.operation == b.operation
    assert torch.equal(a.strength, b.strength)


def test_all_operations_are_drawn_and_none_when_none_is_asked_for():
    rng = torch.Generator().manual_seed(0)
    drawn = [draw_augmentation(OPERATIONS, 1, rng) for _ in range(200)]
    assert {draw.operation for draw in drawn if draw is not None} == set(OPERATIONS)
    assert draw_augmentation((), 1, rng) is None
    x = images()
    assert augment(x, None) is x


def strength(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_neutral_strengths_change_nothing():
    x = images()
    for operation, middle in [
        ("color", strength(0.5, 0.5, 0.5)),
        ("crop", strength(0.5, 0.5, 0)),
        ("flip", strength(0.7, 0, 0)),
        ("rotate", strength(0.5, 0, 0)),
    ]:
        torch.testing.assert_close(augment(x, AugmentDraw(operation, middle)), x)


def test_what_they_do():
    x = images()
    assert torch.equal(augment(x, AugmentDraw("flip", strength(0.2, 0, 0))), x.flip(3))
    down = augment(x, AugmentDraw("crop", strength(0.0, 0.5, 0)))  # 8 pixels shift by at most one
    torch.testing.assert_close(down[:, :, 1:], x[:, :, :-1])
    torch.testing.assert_close(down[:, :, 0], x[:, :, 0])
    cut = augment(x, AugmentDraw("cutout", strength(0.5, 0.5, 0)))
    assert int((cut != x).all(1).sum()) == len(x) * 4 * 4
    torch.testing.assert_close(cut[:, :, 2:6, 2:6], x.mean((2, 3), keepdim=True).expand(4, 3, 4, 4))
