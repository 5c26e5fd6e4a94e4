"""Simonyan and Zisserman, 2015, configuration A with one linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.config.base import Section
from fedsim.models.networks import NormName, Shape

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Options of `vgg11`."""

    norm: NormName = "group"
    """Up to 32 groups of 4 or more channels, one group per channel, or none."""


def build(options: Options, shape: Shape) -> nn.Module:
    """The network for images of this shape."""
    import torch.nn.functional as F
    from torch import nn

    from fedsim.models.networks.layers import Halve, norm_layers

    layers, channels = list[nn.Module](), shape[0]
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1)]
            layers += [*norm_layers(options.norm, width), nn.ReLU()]
            channels = width
        layers.append(Halve(F.max_pool2d))
    return nn.Sequential(*layers, nn.Flatten())
