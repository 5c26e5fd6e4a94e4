"""Layers that several networks share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.errors import ConfigError
from fedsim.models.networks import NormName, Shape

_MOST_GROUPS, _LEAST_CHANNELS = 32, 4


class Norm(nn.GroupNorm):
    """Group norm that refuses groups of a single number, which it would make zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps -> maps, normalised."""
        self.check(x.shape[1], x.shape[2] * x.shape[3])
        return super().forward(x)

    def check(self, channels: int, places: int) -> None:
        """Refuse maps of which a group would have a single number.

        Raises:
            ConfigError: It names the settings to choose instead.
        """
        if channels // self.num_groups * places == 1:
            raise ConfigError(
                "models.classifier: norm 'instance' has nothing to normalise where an image has "
                "shrunk to one pixel: choose norm 'group' or, for convnet, a smaller depth"
            )


def norm_layers(norm: NormName, channels: int) -> list[nn.Module]:
    """The norm layer after a convolution, if any."""
    if norm == "none":
        return []
    if norm == "instance":
        return [Norm(channels, channels)]
    groups = math.gcd(_MOST_GROUPS, channels)
    while groups > 1 and channels // groups < _LEAST_CHANNELS:
        groups //= 2
    return [Norm(groups, channels)]


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016, figure 2)."""

    def __init__(self, norm: NormName, channels: int, out: int, stride: int) -> None:
        super().__init__()
        bias = norm == "none"
        self.path = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=bias),
            *norm_layers(norm, out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=bias),
            *norm_layers(norm, out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            project = nn.Conv2d(channels, out, 1, stride, bias=bias)
            self.shortcut = nn.Sequential(project, *norm_layers(norm, out))

    def forward(self, x: Tensor) -> Tensor:
        """Maps -> maps."""
        return F.relu(self.path(x) + self.shortcut(x))


class Halve(nn.Module):
    """Pooling 2x2, where there is something to pool."""

    def __init__(self, pool: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self._pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Maps -> maps of half the side."""
        return self._pool(x, 2) if min(x.shape[-2:]) > 1 else x


class Mean(nn.Module):
    """The mean over all places."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, c, h, w)` -> `(B, c)`."""
        return x.mean((-2, -1))


def flat_length(module: nn.Module, shape: Shape) -> int:
    """Length of the output of a module on the meta device for an image of shape `(c, h, w)`.

    The module runs with weights of zeros on the CPU. A run on the meta device would load torch's
    compiler, 1.5 s and 70 MB in every process.
    """
    named = (*module.named_parameters(), *module.named_buffers())
    weights = {k: torch.zeros(v.shape, dtype=v.dtype, device="cpu") for k, v in named}
    with torch.device("cpu"), torch.no_grad():
        module.eval()
        made = functional_call(module, weights, (torch.zeros(1, *shape),))
        module.train()
    return int(made.shape[1])
