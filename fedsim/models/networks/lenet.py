"""LeCun et al., 1998, with ReLU and max pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.config.base import Section
from fedsim.models.networks import Shape

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """`lenet` follows its paper and has no options."""


def build(options: Options, shape: Shape) -> nn.Module:
    """The network for images of this shape."""
    import torch.nn.functional as F
    from torch import nn

    from fedsim.models.networks.layers import Halve, flat_length

    side = min(shape[1:])
    first = nn.Conv2d(shape[0], 6, 5, padding=0 if side >= 32 else 2)
    side = side - 4 if side >= 32 else side
    second = nn.Conv2d(6, 16, 5, padding=0 if side // 2 >= 10 else 2)
    pool = Halve(F.max_pool2d)
    flat = nn.Sequential(first, nn.ReLU(), pool, second, nn.ReLU(), pool, nn.Flatten())
    fully = [nn.Linear(flat_length(flat, shape), 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return nn.Sequential(*flat, *fully)
