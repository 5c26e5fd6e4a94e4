"""Weights near a network's, with which distributions are matched."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from fedsim.distill.shared_set import perturbed
from fedsim.params import Params
from fedsim.seeding import torch_rng
from tests.distill.nets import weights

SHORTENS_NOTHING = 1e6


def move(start: Params, rho: float, rng: torch.Generator | None = None) -> Tensor:
    """What a perturbation adds, all tensors in one row."""
    near = perturbed(start, rho, rng or torch_rng(0, "near"))
    assert list(near) == list(start)
    return torch.cat([(near[k] - v).flatten() for k, v in start.items()])


@pytest.mark.parametrize("rho", [0.0, 0.1, 5.0, SHORTENS_NOTHING])
def test_a_move_longer_than_rho_is_shortened_as_a_whole(rho: float):
    start = weights(1)
    whole = move(start, SHORTENS_NOTHING)
    length = float(whole.norm())
    assert 5 < length < 10
    torch.testing.assert_close(move(start, rho), min(1.0, rho / length) * whole)


def test_a_move_is_gaussian_and_drawn_anew():
    start, rng = {"a": torch.ones(40, 50), "b": torch.full((3000,), -2.0)}, torch_rng(0, "near")
    first, second = (move(start, SHORTENS_NOTHING, rng) for _ in range(2))
    assert kstest(first.numpy(), "norm").pvalue > 0.05
    assert kstest((first - second).numpy() / 2**0.5, "norm").pvalue > 0.05
    assert abs(torch.corrcoef(torch.stack([first[:2000], first[2000:4000]]))[0, 1]) < 0.06
