"""The vision transformer of Dosovitskiy et al., 2021.

Patches are of 2 px (below 16 px), 4, 8 (from 64 px) or 16 (from 128 px). There is no dropout, which
would draw at random inside the client axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from fedsim.config.base import Section
from fedsim.models.networks import Shape

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """Options of `vit`."""

    depth: int = Field(6, gt=0)
    """Layers."""
    width: int = Field(192, gt=0)
    """Length of a token; heads are 64 wide, so it is a multiple of 64."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Options:
        if self.width % 64:
            raise ValueError(f"width of vit is {self.width}: heads are 64 wide, use a multiple")
        return self


def build(options: Options, shape: Shape) -> nn.Module:
    """The network for images of this shape."""
    from fedsim.models.networks.attention import VisionTransformer

    return VisionTransformer(shape, options.width, options.depth)
