"""Krizhevsky et al., 2012, in the form used for 32 px: one linear layer, no strides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.config.base import Section
from fedsim.models.networks import Shape

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """`alexnet` follows its paper and has no options."""


def build(options: Options, shape: Shape) -> nn.Module:
    """The network for images of this shape."""
    import torch.nn.functional as F
    from torch import nn

    from fedsim.models.networks.layers import Halve

    pool = Halve(F.max_pool2d)
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 128, 5, padding=2), nn.ReLU(), pool),
        *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), pool),
        *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), pool),
        nn.Flatten(),
    )
