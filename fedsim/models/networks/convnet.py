"""The network of dataset distillation (Gidaris and Komodakis, 2018; Zhao et al., 2021).

Blocks of conv 3x3 - norm - ReLU - average pool 2x2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from fedsim.config.base import Section
from fedsim.models.networks import NormName, Shape

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Options of `convnet`."""

    depth: int = Field(3, gt=0)
    """Blocks."""
    width: int = Field(128, gt=0)
    """Channels."""
    norm: NormName = "group"
    """Up to 32 groups of 4 or more channels, one group per channel, or none."""


def build(options: Options, shape: Shape) -> nn.Module:
    """The network for images of this shape."""
    import torch.nn.functional as F
    from torch import nn

    from fedsim.models.networks.layers import Halve, norm_layers

    layers, channels, width = list[nn.Module](), shape[0], options.width
    for _ in range(options.depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), *norm_layers(options.norm, width)]
        layers += [nn.ReLU(), Halve(F.avg_pool2d)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten())
