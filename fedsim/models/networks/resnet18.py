"""He et al., 2016: the 3x3 stem for CIFAR, from 64 px on the one for ImageNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from fedsim.config.base import Section
from fedsim.models.networks import NormName, Shape

if TYPE_CHECKING:
    from torch import nn

_IMAGENET_FROM = 64


class Options(Section):
    """Options of `resnet18`."""

    width: int = Field(64, gt=0)
    """Channels of the first stage."""
    norm: NormName = "group"
    """Up to 32 groups of 4 or more channels, one group per channel, or none."""


def build(options: Options, shape: Shape) -> nn.Module:
    """The network for images of this shape."""
    from torch import nn

    from fedsim.models.networks.layers import Mean, Residual, norm_layers

    width, norm = options.width, options.norm
    large = max(shape[1:]) >= _IMAGENET_FROM
    kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, kernel, stride, padding, bias=norm == "none"),
        *norm_layers(norm, width),
        nn.ReLU(),
        *([nn.MaxPool2d(3, 2, 1)] if large else []),
    ]
    channels = width
    for stage in range(4):
        for block in range(2):
            out = width * 2**stage
            layers.append(Residual(norm, channels, out, 2 if stage and not block else 1))
            channels = out
    return nn.Sequential(*layers, Mean())
