"""Networks for images of 8 to 224 pixels with 1 or 3 channels, up to what enters the last layer.

    convnet    blocks of conv 3x3 - norm - ReLU - average pool 2x2: the network of dataset
               distillation (Gidaris and Komodakis, 2018; Zhao et al., 2021)
    lenet      LeCun et al., 1998, with ReLU and max pooling
    alexnet    Krizhevsky et al., 2012, in the form used for 32 px: one linear layer, no strides
    vgg11      Simonyan and Zisserman, 2015, configuration A with one linear layer
    resnet18   He et al., 2016: the 3x3 stem for CIFAR, from 64 px on the one for ImageNet
    vit        Dosovitskiy et al., 2021: patches of 2 px (below 16 px), 4, 8 (from 64 px) or 16
               (from 128 px); no dropout, which would draw inside the client axis

Where an image has shrunk to one pixel, nothing is left to pool, and pooling is left out.

**Norm layers.** Group norm (Wu and He, 2018): up to 32 groups of at least 4 channels.
There is no batch norm: statistics of one client's batches are part of what non-IID data changes,
their averages belong to no model, and padding would change the valid samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.config.classifier import ClassifierConfig
from fedsim.errors import ConfigError

__all__ = ["Halve", "Mean", "Norm", "Residual", "Shape", "build_body"]

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

_IMAGENET_FROM = 64
_MOST_GROUPS, _LEAST_CHANNELS = 32, 4
_HEAD_WIDTH = 64


def build_body(settings: ClassifierConfig, shape: Shape) -> nn.Module:
    """A module `(B, c, h, w)` -> `(B, d)` on torch's current device."""
    return _BODIES[settings.name](settings, shape)


def _convnet(settings: ClassifierConfig, shape: Shape) -> nn.Module:
    width, layers, channels = settings.width or 128, list[nn.Module](), shape[0]
    for _ in range(settings.depth or 3):
        layers += [nn.Conv2d(channels, width, 3, padding=1), *_norm(settings, width), nn.ReLU()]
        layers.append(Halve(F.avg_pool2d))
        channels = width
    return nn.Sequential(*layers, nn.Flatten())


def _lenet(settings: ClassifierConfig, shape: Shape) -> nn.Module:
    side = min(shape[1:])
    first = nn.Conv2d(shape[0], 6, 5, padding=0 if side >= 32 else 2)
    side = side - 4 if side >= 32 else side
    second = nn.Conv2d(6, 16, 5, padding=0 if side // 2 >= 10 else 2)
    pool = Halve(F.max_pool2d)
    layers = [first, nn.ReLU(), pool, second, nn.ReLU(), pool, nn.Flatten()]
    flat = nn.Sequential(*layers)
    fully = [nn.Linear(flat_length(flat, shape), 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return nn.Sequential(*flat, *fully)


def _alexnet(settings: ClassifierConfig, shape: Shape) -> nn.Module:
    pool = Halve(F.max_pool2d)
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 128, 5, padding=2), nn.ReLU(), pool),
        *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), pool),
        *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), pool),
        nn.Flatten(),
    )


def _vgg11(settings: ClassifierConfig, shape: Shape) -> nn.Module:
    layers, channels = list[nn.Module](), shape[0]
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=1), *_norm(settings, width), nn.ReLU()]
            channels = width
        layers.append(Halve(F.max_pool2d))
    return nn.Sequential(*layers, nn.Flatten())


def _resnet18(settings: ClassifierConfig, shape: Shape) -> nn.Module:
    width, bias = settings.width or 64, settings.norm == "none"
    large = max(shape[1:]) >= _IMAGENET_FROM
    kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, kernel, stride, padding, bias=bias),
        *_norm(settings, width),
        nn.ReLU(),
        *([nn.MaxPool2d(3, 2, 1)] if large else []),
    ]
    channels = width
    for stage in range(4):
        for block in range(2):
            out = width * 2**stage
            layers.append(Residual(settings, channels, out, 2 if stage and not block else 1))
            channels = out
    return nn.Sequential(*layers, Mean())


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016, figure 2)."""

    def __init__(self, settings: ClassifierConfig, channels: int, out: int, stride: int) -> None:
        super().__init__()
        bias = settings.norm == "none"
        self.path = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=bias),
            *_norm(settings, out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=bias),
            *_norm(settings, out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            project = nn.Conv2d(channels, out, 1, stride, bias=bias)
            self.shortcut = nn.Sequential(project, *_norm(settings, out))

    def forward(self, x: Tensor) -> Tensor:
        """Maps -> maps."""
        return F.relu(self.path(x) + self.shortcut(x))


def _vit(settings: ClassifierConfig, shape: Shape) -> nn.Module:
    return _VisionTransformer(shape, settings.width or 192, settings.depth or 6)


class _VisionTransformer(nn.Module):
    """Patches as tokens, a class token in front of them, layers that normalise first."""

    def __init__(self, shape: Shape, width: int, depth: int) -> None:
        super().__init__()
        side = max(shape[1:])
        self.patch = 2 if side < 16 else 4 if side < 64 else 8 if side < 128 else 16
        count = math.prod(math.ceil(length / self.patch) for length in shape[1:])
        self.embed = nn.Conv2d(shape[0], width, self.patch, self.patch)
        self.token = nn.Parameter(torch.zeros(1, width))
        self.position = nn.Parameter(torch.zeros(1 + count, width))
        self.layers = nn.Sequential(*(_Layer(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        below, right = (-length % self.patch for length in x.shape[-2:])
        patches = self.embed(F.pad(x, (0, right, 0, below))).flatten(2).transpose(1, 2)
        first = self.token.expand(len(x), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.position
        return self.norm(self.layers(tokens)[:, 0])


class _Layer(nn.Module):
    """Self-attention and two linear layers, each beside a shortcut.

    Attention is the plain formula: torch's fused kernels have no batching rule.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self._attend(self.norm1(x)))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        split = self.qkv(x).view(batch, count, 3, width // _HEAD_WIDTH, _HEAD_WIDTH)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(_HEAD_WIDTH)).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(batch, count, width)


class Norm(nn.GroupNorm):
    """Group norm that refuses groups of a single number, which it would make zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps -> maps, normalised."""
        self.check(x.shape[1], x.shape[2] * x.shape[3])
        return super().forward(x)

    def check(self, channels: int, places: int) -> None:
        """Refuse maps of so many channels and places of which a group has a single number.

        Raises:
            ConfigError: Saying what to choose instead.
        """
        if channels // self.num_groups * places == 1:
            raise ConfigError(
                "models.classifier: norm 'instance' has nothing to normalise where an image has "
                "shrunk to one pixel: choose norm 'group' or, for convnet, a smaller depth"
            )


def _norm(settings: ClassifierConfig, channels: int) -> list[nn.Module]:
    """The norm layer after a convolution; none where `norm` says so."""
    if settings.norm == "none":
        return []
    if settings.norm == "instance":
        return [Norm(channels, channels)]
    groups = math.gcd(_MOST_GROUPS, channels)
    while groups > 1 and channels // groups < _LEAST_CHANNELS:
        groups //= 2
    return [Norm(groups, channels)]


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
    """Length of what a module on the meta device makes of an image of shape `(c, h, w)`.

    It is asked with real weights, of any values: on the meta device it would load torch's compiler,
    1.5 s and 70 MB in every process.
    """
    named = (*module.named_parameters(), *module.named_buffers())
    weights = {k: torch.zeros(v.shape, dtype=v.dtype, device="cpu") for k, v in named}
    with torch.device("cpu"), torch.no_grad():
        module.eval()
        made = functional_call(module, weights, (torch.zeros(1, *shape),))
        module.train()
    return int(made.shape[1])


_BODIES: dict[str, Callable[[ClassifierConfig, Shape], nn.Module]] = {
    "convnet": _convnet,
    "lenet": _lenet,
    "alexnet": _alexnet,
    "vgg11": _vgg11,
    "resnet18": _resnet18,
    "vit": _vit,
}
